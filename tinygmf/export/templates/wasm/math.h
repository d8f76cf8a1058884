/* The little that network.c takes from libm: one instruction each in WebAssembly. */
#define INFINITY __builtin_inff()
#define sqrtf __builtin_sqrtf

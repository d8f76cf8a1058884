/* The little that network.c takes from the C library. */
#define memcpy __builtin_memcpy

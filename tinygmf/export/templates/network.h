/* @TITLE@ */
#ifndef NETWORK_H
#define NETWORK_H

#include <stddef.h>

enum {
    NETWORK_BATCH = @BATCH@,     /* pictures in one run */
    NETWORK_SIZE = @SIZE@,       /* height and width of a picture, in pixels */
    NETWORK_CLASSES = @CLASSES@, /* values for each picture */
    NETWORK_PICTURE = 3 * NETWORK_SIZE * NETWORK_SIZE, /* floats of a picture */
    NETWORK_WEIGHTS = @WEIGHTS@, /* floats */
    NETWORK_ARENA = @ARENA@,     /* floats of working memory */
    NETWORK_HEADER = 64,         /* bytes before the weights in weights.bin */
    NETWORK_FILE = NETWORK_HEADER + 4 * NETWORK_WEIGHTS /* bytes of weights.bin */
};

extern const char *const network_names[NETWORK_CLASSES];

/* The weights inside weights.bin, which lies in memory at an address that suits a float.
   NULL if it is another network's, cut short or damaged. */
const float *network_weights(const void *file, size_t bytes);

/* RGB pixels, row by row -> a picture as the network reads it: three planes, normalized. */
void network_prepare(const unsigned char *rgb, float *picture);

/* NETWORK_BATCH pictures -> as many rows of NETWORK_CLASSES logits. The arena may hold anything;
   calls with arenas of their own may run at the same time. */
void network_run(const float *weights, float *arena, const float *pictures, float *logits);

/* The calls of `network_run` from one on, where the arena holds what a run left there, or other
   values for the map that was kept just before. `first` is one of those that network.c compares. */
void network_run_from(int first, const float *weights, float *arena, const float *pictures,
                      float *logits);

#endif

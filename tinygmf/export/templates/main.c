/* Names what a picture shows: classify PICTURE.ppm [WEIGHTS.bin]. With NETWORK_EMBEDDED the weights
   are part of the program. */
#include <math.h>
#include <stdio.h>

#include "network.h"

#ifdef NETWORK_EMBEDDED
extern const unsigned char network_file[NETWORK_FILE];
#else
static _Alignas(64) unsigned char file[NETWORK_FILE + 1];
#endif
static _Alignas(64) float arena[NETWORK_ARENA];
static float pictures[NETWORK_BATCH * NETWORK_PICTURE], logits[NETWORK_BATCH * NETWORK_CLASSES];
static unsigned char pixels[NETWORK_PICTURE];

static int fail(const char *name, const char *what) {
    fprintf(stderr, "classify: %s: %s\n", name, what);
    return 2;
}

/* The next number of a PPM's header, past white space and comments; -1 without one. */
static int number(FILE *ppm) {
    int c = getc(ppm), value = 0;
    while (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '#') {
        if (c == '#')
            while (c != '\n' && c != EOF) c = getc(ppm);
        c = getc(ppm);
    }
    if (c < '0' || c > '9') return -1;
    for (; c >= '0' && c <= '9' && value < 100000; c = getc(ppm)) value = 10 * value + (c - '0');
    return value;
}

/* Whether the file is a PPM of the network's size; its pixels are then in `pixels`. */
static int read_picture(const char *name) {
    FILE *ppm = fopen(name, "rb");
    if (!ppm) return 0;
    int good = getc(ppm) == 'P' && getc(ppm) == '6' && number(ppm) == NETWORK_SIZE &&
               number(ppm) == NETWORK_SIZE && number(ppm) == 255 &&
               fread(pixels, 1, sizeof pixels, ppm) == sizeof pixels;
    fclose(ppm);
    return good;
}

static const float *read_weights(const char *name) {
#ifdef NETWORK_EMBEDDED
    (void)name;
    return network_weights(network_file, NETWORK_FILE);
#else
    FILE *weights = fopen(name, "rb");
    if (!weights) return NULL;
    size_t bytes = fread(file, 1, sizeof file, weights);
    fclose(weights);
    return network_weights(file, bytes);
#endif
}

/* Prints the likeliest classes, at most five. The logits are used up. */
static void print_likeliest(float *row) {
    float sum = 0, largest = row[0];
    for (int i = 1; i < NETWORK_CLASSES; i++) largest = fmaxf(largest, row[i]);
    for (int i = 0; i < NETWORK_CLASSES; i++) sum += expf(row[i] - largest);
    for (int rank = 0; rank < 5 && rank < NETWORK_CLASSES; rank++) {
        int best = 0;
        for (int i = 1; i < NETWORK_CLASSES; i++)
            if (row[i] > row[best]) best = i;
        printf("%7.2f%%  %4d  %s\n", (double)(100 * expf(row[best] - largest) / sum), best,
               network_names[best]);
        row[best] = -INFINITY;
    }
}

int main(int count, char **words) {
    const char *weights_name = count > 2 ? words[2] : "weights.bin";
    if (count < 2 || count > 3) return fail("usage", "classify PICTURE.ppm [WEIGHTS.bin]");
    if (!read_picture(words[1]))
        return fail(words[1], "expected a PPM (P6, 8 bits) of the size in network.h: convert it");
    const float *weights = read_weights(weights_name);
    if (!weights)
        return fail(weights_name, "expected this network's weights, whole: export them again");
    network_prepare(pixels, pictures);
    network_run(weights, arena, pictures, logits);
    print_likeliest(logits);
    return 0;
}

/* @TITLE@

   The functions below are the network's operations, each for one shape. `network_run_from`, at the
   end, calls them in order. Maps have their channels last. */
#include "network.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

const char *const network_names[NETWORK_CLASSES] = {
@NAMES@
};

static uint32_t crc32(const unsigned char *data, size_t bytes) {
    uint32_t table[256], crc = 0xFFFFFFFFu;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++)
            table[i] = (table[i] & 1) ? (table[i] >> 1) ^ 0xEDB88320u : table[i] >> 1;
    }
    for (; bytes; bytes--, data++) crc = table[(crc ^ *data) & 255] ^ (crc >> 8);
    return ~crc;
}

const float *network_weights(const void *file, size_t bytes) {
    const unsigned char *data = file;
    uint32_t header[4]; /* "tgmf", architecture, number of floats, checksum */
    if (bytes != NETWORK_FILE) return NULL;
    memcpy(header, data, sizeof header);
    if (header[0] != 0x666D6774u || header[1] != @ARCHITECTURE@u || header[2] != NETWORK_WEIGHTS ||
        header[3] != crc32(data + NETWORK_HEADER, NETWORK_FILE - NETWORK_HEADER))
        return NULL;
    return (const float *)(const void *)(data + NETWORK_HEADER);
}

void network_prepare(const unsigned char *rgb, float *picture) {
    static const float mean[3] = {@MEAN@};
    static const float deviation[3] = {@STD@};
    const int plane = NETWORK_SIZE * NETWORK_SIZE;
    for (int i = 0; i < plane; i++)
        for (int c = 0; c < 3; c++)
            picture[c * plane + i] = ((float)rgb[3 * i + c] / 255.0f - mean[c]) / deviation[c];
}

static inline float from_bits(int bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

@KERNELS@
/* Where each array stands in the weights. */
enum {
@WEIGHT_OFFSETS@
};

void network_run_from(int first, const float *w, float *a, const float *input, float *output) {
@CALLS@
}

void network_run(const float *w, float *a, const float *input, float *output) {
    network_run_from(0, w, a, input, output);
}

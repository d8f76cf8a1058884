/* network.c on several threads of WebAssembly that share one memory.

   Each call is cut into pieces. A thread claims a piece, waits until the call before it is finished,
   runs the piece and counts it. So nobody waits for a thread that has not come: where workers are
   still starting, the first thread runs all by itself. */
#include "network.c"

enum { CALLS = @COUNT@, LOOKS = 1000 /* at a counter, before a worker sleeps */ };
static const int64_t FOREVER = -1, MOMENT = 50000; /* nanoseconds */
static const uint32_t pieces[CALLS] = {@PIECES@};
/* Of each call: the number of the last run that has it, times 256, plus pieces. */
static uint32_t claimed[CALLS], finished[CALLS];
static int64_t job;     /* the number of a run, times 2^32, plus the call that it begins with */
static uint32_t helped; /* pieces that workers ran, in all runs */

static void run_piece(uint32_t call, unsigned char piece, const float *w, float *a,
                      const float *input, float *output) {
    (void)piece;
    switch (call) {
@CASES@
    }
}

/* Adds a piece to what a run has of a call, and returns how many there were: all of them if there
   is none to add, or a later run has begun. */
static uint32_t next(uint32_t *count, uint32_t run, uint32_t all) {
    uint32_t old = __atomic_load_n(count, __ATOMIC_RELAXED), had;
    do {
        had = old >> 8 == run ? old & 255 : 0;
        if (old >> 8 > run || had == all) return all;
    } while (!__atomic_compare_exchange_n(count, &old, run << 8 | (had + 1), 1, __ATOMIC_RELEASE,
                                          __ATOMIC_RELAXED));
    return had;
}

/* Until a run has finished a call. A page's own thread must not sleep, and looks on. */
static void wait(uint32_t call, uint32_t run, int worker) {
    const uint32_t goal = run << 8 | pieces[call];
    uint32_t now;
    for (int looks = 1; (now = __atomic_load_n(&finished[call], __ATOMIC_ACQUIRE)) != goal; looks++)
        if (worker && looks % LOOKS == 0)
            __builtin_wasm_memory_atomic_wait32((int *)&finished[call], (int)now, MOMENT);
}

static void take_part(int64_t task, int worker, const float *w, float *a, const float *input,
                      float *output) {
    const uint32_t run = (uint32_t)(task >> 32), first = (uint32_t)task;
    for (uint32_t call = first, piece; call < CALLS; call++)
        while ((piece = next(&claimed[call], run, pieces[call])) < pieces[call]) {
            if (call > first) wait(call - 1, run, worker);
            run_piece(call, (unsigned char)piece, w, a, input, output);
            next(&finished[call], run, pieces[call]);
            if (worker) __atomic_fetch_add(&helped, 1, __ATOMIC_RELAXED);
        }
}

/* `network_run_from`, with the help of those workers that have come. */
void network_run_together(int first, const float *w, float *a, const float *input, float *output) {
    const int64_t task = ((job >> 32) + 1) << 32 | first;
    __atomic_store_n(&job, task, __ATOMIC_RELEASE);
    __builtin_wasm_memory_atomic_notify((int *)(void *)&job, (unsigned)-1);
    take_part(task, 0, w, a, input, output);
    wait(CALLS - 1, (uint32_t)(task >> 32), 0);
}

/* A worker's whole life: it takes part in every run. */
void network_help(const float *w, float *a, const float *input, float *output) {
    for (int64_t done = 0, task;; done = task) {
        while ((task = __atomic_load_n(&job, __ATOMIC_ACQUIRE)) == done)
            __builtin_wasm_memory_atomic_wait64((long long *)&job, done, FOREVER);
        take_part(task, 1, w, a, input, output);
    }
}

unsigned network_helped(void) { return __atomic_load_n(&helped, __ATOMIC_RELAXED); }

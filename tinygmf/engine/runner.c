/* Runs the kernels of a program on as many threads as call this function.
 *
 * Every kernel is cut into pieces. A thread claims a piece, waits until all kernels before it are
 * finished, runs it, and counts it as finished. So nobody waits for a thread that has not come:
 * where the other cores are busy, the first thread runs every piece by itself. Of each kernel a
 * thread claims its own share first, as the rows that it needs are likely to be in its core's cache.
 * Claims and counts go on from run to run, or a thread that comes late to one would take pieces of
 * the next.
 */
typedef unsigned long long word;

#define WORDS 32 /* the most arguments of a kernel; one that takes fewer ignores the rest */
#define EIGHT(x) x, x, x, x, x, x, x, x
#define FOUR(w) (w)[0], (w)[1], (w)[2], (w)[3]
#define SIXTEEN(w) FOUR(w), FOUR((w) + 4), FOUR((w) + 8), FOUR((w) + 12)
#define PATIENCE 64 /* looks at the counter before the core is offered to other threads */

struct piece {
  word claimed; /* the number of the last run that it was claimed for */
  word size;    /* pieces of this kernel */
  ABI void (*run)(EIGHT(word), EIGHT(word), EIGHT(word), EIGHT(word));
  word words[WORDS];
};

struct program {
  _Alignas(64) word finished; /* pieces, in all runs */
  _Alignas(64) word count;    /* pieces, in one run */
  ABI int (*yield)(void);
  _Alignas(64) struct piece pieces[];
};

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Acquire: what the pieces that were counted have written is seen from here on. */
static void wait(struct program *program, word goal) {
  for (word looks = 1; __atomic_load_n(&program->finished, __ATOMIC_ACQUIRE) < goal; looks++)
    looks % PATIENCE ? relax() : (void)program->yield();
}

/* Takes part in a run, the first of which has number 1, as thread `me` of `threads`. Thread 0
 * returns when the run is finished. */
ABI void work(struct program *program, word run, word me, word threads) {
  const word before = (run - 1) * program->count;
  for (word first = 0, size; first < program->count; first += size) {
    size = program->pieces[first].size;
    for (word i = 0; i < size; i++) {
      struct piece *piece = &program->pieces[first + (i + me * size / threads) % size];
      word *w = piece->words, last = run - 1;
      if (!__atomic_compare_exchange_n(&piece->claimed, &last, run, 0, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED))
        continue;
      wait(program, before + first);
      piece->run(SIXTEEN(w), SIXTEEN(w + 16));
      __atomic_fetch_add(&program->finished, 1, __ATOMIC_RELEASE);
    }
  }
  if (me == 0)
    wait(program, before + program->count);
}

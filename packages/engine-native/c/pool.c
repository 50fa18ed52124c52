#include "pool.h"

#include <stdatomic.h>
#include <stdint.h>
#include <uv.h>

#define MOST_THREADS 64
// How long a thread looks for the next job before it sleeps: about 0.1 ms, the pause between two
// products of a training step.
#define SPINS 3000

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() (void)0
#endif

// One word holds number of the job, its pieces and the next piece, so that taking a piece and knowing that it belongs to
// the job that is described in `task` and `job` is one step.
#define PIECE_BITS 20
#define PIECE_MASK ((1u << PIECE_BITS) - 1)
static _Atomic uint64_t ticket;
static _Atomic int finished, sleepers, wanted = 1;
static PoolTask current_task;
static void *current_job;
static int started = 1;

static uv_once_t once = UV_ONCE_INIT;
// Not a mutex: those of Windows let the thread that has one in again.
static atomic_flag busy = ATOMIC_FLAG_INIT;
static uv_mutex_t gate;
static uv_cond_t wake;
static uv_thread_t threads[MOST_THREADS];

static void setup(void) {
  uv_mutex_init(&gate);
  uv_cond_init(&wake);
}

static int pieces_of(uint64_t t) { return (int)((t >> PIECE_BITS) & PIECE_MASK); }
static int piece_of(uint64_t t) { return (int)(t & PIECE_MASK); }
static int is_open(uint64_t t) { return piece_of(t) < pieces_of(t); }

static void work(int worker) {
  while (is_open(atomic_load(&ticket))) {
    uint64_t mine = atomic_fetch_add(&ticket, 1);
    if (!is_open(mine)) return;
    // The job cannot be replaced while this piece is unfinished.
    current_task(current_job, piece_of(mine), worker);
    atomic_fetch_add(&finished, 1);
  }
}

static void serve(void *argument) {
  int worker = (int)(intptr_t)argument;
  for (;;) {
    int spins = 0;
    while (!(is_open(atomic_load(&ticket)) && worker < atomic_load(&wanted))) {
      if (++spins < SPINS) {
        PAUSE();
        continue;
      }
      uv_mutex_lock(&gate);
      atomic_fetch_add(&sleepers, 1);
      if (!(is_open(atomic_load(&ticket)) && worker < atomic_load(&wanted))) uv_cond_wait(&wake, &gate);
      atomic_fetch_sub(&sleepers, 1);
      uv_mutex_unlock(&gate);
      spins = 0;
    }
    work(worker);
  }
}

void pool_resize(int count) {
  atomic_store(&wanted, count < 1 ? 1 : count > MOST_THREADS ? MOST_THREADS : count);
}

int pool_size(void) { return atomic_load(&wanted); }

void pool_run(PoolTask task, void *job, int pieces) {
  uv_once(&once, setup);
  int size = pool_size();
  if (pieces <= 1 || size == 1 || pieces > (int)PIECE_MASK / 2 || atomic_flag_test_and_set(&busy)) {
    for (int i = 0; i < pieces; i++) task(job, i, -1);
    return;
  }
  uv_thread_options_t options = {.flags = UV_THREAD_HAS_STACK_SIZE, .stack_size = 1 << 20};
  while (started < size) {
    if (uv_thread_create_ex(&threads[started], &options, serve, (void *)(intptr_t)started) != 0) break;
    started++;
  }
  current_task = task;
  current_job = job;
  atomic_store(&finished, 0);
  uint64_t number = (atomic_load(&ticket) >> (2 * PIECE_BITS)) + 1;
  atomic_store(&ticket, number << (2 * PIECE_BITS) | (uint64_t)pieces << PIECE_BITS);
  if (atomic_load(&sleepers) > 0) {
    uv_mutex_lock(&gate);
    uv_cond_broadcast(&wake);
    uv_mutex_unlock(&gate);
  }
  work(0);
  while (atomic_load(&finished) < pieces) PAUSE();
  atomic_flag_clear(&busy);
}

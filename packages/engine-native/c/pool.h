// A small pool of threads that share the pieces of one job at a time. The caller works too, and a thread that comes too
// late costs nothing: whoever is there takes the next piece.
#pragma once

typedef void (*PoolTask)(void *job, int piece, int worker);

// Sets the number of threads, the caller's included. Threads are started when first needed.
void pool_resize(int threads);
int pool_size(void);

// Runs task(job, piece, worker) for every piece in [0, pieces). `worker` is in [0, pool_size()); -1 says that the pool
// serves another caller and everything runs here.
void pool_run(PoolTask task, void *job, int pieces);

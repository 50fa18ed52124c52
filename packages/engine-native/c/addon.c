// Node-API addon: the kernels of @matforge/engine as machine code, on the same heap. A set of functions is made for each
// heap; addresses are offsets from its beginning, 0 is the null pointer, as in WebAssembly.
#define NAPI_VERSION 8
#include <node_api.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gemm.h"
#include "pool.h"

typedef struct {
  const char *name;
  int arguments;
  double (*call)(const double *, char *);
  const char *split;  // a letter for each argument (SHARE in common.h), null for what one thread does
} Entry;

// Stand in for addresses that are not on the heap but the thread's own.
#define OWN_WORK (-0.5)
#define OWN_GEOMETRY (-0.25)
enum { GEOMETRY_INTS = 32 };
static _Thread_local float *own_work;
static _Thread_local size_t own_work_bytes;
static _Thread_local int own_geometry[GEOMETRY_INTS];

static inline void *at(double address, char *heap) {
  if (address == 0) return 0;
  if (address == OWN_WORK) return own_work;
  if (address == OWN_GEOMETRY) return own_geometry;
  return heap + (uint32_t)(int64_t)address;
}
#define AT(i) at(v[i], heap)
#include "engine/table.h"

enum { FUNCTIONS = sizeof(table) / sizeof(*table), MOST_ARGUMENTS = 24 };

typedef struct {
  char *start;
} Heap;
typedef struct {
  Heap *heap;
  const Entry *entry;
} Bound;

// ------------------------------------------------------------------------------------------------- sharing the work
typedef struct {
  const Entry *entry;
  const double *values;
  char *heap;
  int64_t total, step;  // rows or images, and how many of them make a piece
  double unit, inner;   // factors of a row's length
} Share;
static _Atomic int failed;

static void run_piece(void *data, int index, int worker) {
  const Share *share = data;
  const char *split = share->entry->split;
  double values[MOST_ARGUMENTS];
  int64_t from = index * share->step, rows = share->total - from < share->step ? share->total - from : share->step;
  const int *geometry = 0;
  (void)worker;
  for (int i = 0; split[i]; i++) {
    double value = share->values[i], bytes = 0;
    switch (split[i]) {
      case 'N': values[i] = (double)rows; continue;
      case 'G':
        geometry = at(value, share->heap);
        memcpy(own_geometry, geometry, 15 * sizeof(int));
        own_geometry[0] = (int)rows;
        values[i] = OWN_GEOMETRY;
        continue;
      case 'W': {
        size_t needed = (size_t)mf_conv_work(own_geometry);
        if (needed > own_work_bytes) {
          free(own_work);
          own_work = malloc(needed);
          own_work_bytes = own_work ? needed : 0;
        }
        if (!own_work) {
          failed = 1;
          return;
        }
        values[i] = OWN_WORK;
        continue;
      }
      case 'R': bytes = 4 * share->unit * share->inner; break;
      case 'S': bytes = 4 * share->inner; break;
      case 'T': bytes = share->values[i + 1]; break;
      case 'I': bytes = 4.0 * geometry[1] * geometry[2] * geometry[3]; break;
      case 'O': bytes = 4.0 * geometry[4] * geometry[5] * geometry[6]; break;
      case 'P': bytes = 4.0 * geometry[4] * geometry[5] * geometry[3]; break;
    }
    values[i] = value == 0 ? 0 : value + bytes * from;
  }
  share->entry->call(values, share->heap);
}

static double run(const Entry *entry, const double *values, char *heap) {
  const int threads = pool_size();
  if (!entry->split || threads == 1) return entry->call(values, heap);
  Share share = {entry, values, heap, 0, 0, 1, 1};
  int64_t together = 1;
  double row = 1;
  for (int i = 0; entry->split[i]; i++) {
    double value = values[i];
    const int *geometry;
    switch (entry->split[i]) {
      case 'N': share.total = (int64_t)value; break;
      case 'u': share.unit = value; break;
      case 'i': share.inner = value; break;
      case 'q': together = (int64_t)value; break;
      case 'T': row = values[1] / 4; break;
      case 'G':
        geometry = at(value, heap);
        share.total = geometry[0];
        row = (double)geometry[4] * geometry[5] * geometry[3];
        break;
    }
  }
  row *= share.unit * share.inner;
  // Waking a thread costs about as much as going through this many numbers.
  if (row * share.total < 1 << 15 || together < 1) return entry->call(values, heap);
  int64_t pieces = 2 * threads, most = (int64_t)(row * share.total / 8192);
  if (pieces > most) pieces = most;
  share.step = (share.total + pieces - 1) / pieces;
  // Vectors and cache lines stay whole.
  if (row == 1) together = 64;
  share.step = (share.step + together - 1) / together * together;
  pool_run(run_piece, &share, (int)((share.total + share.step - 1) / share.step));
  return 0;
}

static napi_value call(napi_env env, napi_callback_info info) {
  napi_value arguments[MOST_ARGUMENTS], result = 0;
  size_t count = MOST_ARGUMENTS;
  void *data;
  double values[MOST_ARGUMENTS] = {0};
  napi_get_cb_info(env, info, &count, arguments, 0, &data);
  const Bound *bound = data;
  if ((int)count < bound->entry->arguments) {
    napi_throw_type_error(env, 0, "engine-native: too few arguments for this kernel");
    return 0;
  }
  for (int i = 0; i < bound->entry->arguments; i++)
    if (napi_get_value_double(env, arguments[i], &values[i]) != napi_ok) {
      napi_throw_type_error(env, 0, "engine-native: kernels take numbers only");
      return 0;
    }
  double value = run(bound->entry, values, bound->heap->start);
  if (failed || gemm_failed()) {
    napi_throw_error(env, 0, "engine-native: out of memory: no work area for a kernel");
    return 0;
  }
  napi_create_double(env, value, &result);
  return result;
}

// move(bytes): the heap is where this Uint8Array is, after it has grown.
static napi_value move(napi_env env, napi_callback_info info) {
  napi_value array;
  size_t count = 1, length;
  void *data, *start;
  napi_typedarray_type type;
  napi_get_cb_info(env, info, &count, &array, 0, &data);
  if (count < 1 || napi_get_typedarray_info(env, array, &type, &length, &start, 0, 0) != napi_ok || type != napi_uint8_array) {
    napi_throw_type_error(env, 0, "engine-native: expected a Uint8Array over the whole heap");
    return 0;
  }
  ((Heap *)data)->start = start;
  return 0;
}

// open(): an object with `move` and a function for each kernel.
static napi_value open_heap(napi_env env, napi_callback_info info) {
  (void)info;
  napi_value object, function;
  char *space = calloc(1, sizeof(Heap) + FUNCTIONS * sizeof(Bound));
  if (!space) {
    napi_throw_error(env, 0, "engine-native: out of memory");
    return 0;
  }
  Heap *heap = (Heap *)space;
  Bound *bound = (Bound *)(space + sizeof(Heap));
  napi_create_object(env, &object);
  napi_create_function(env, "move", NAPI_AUTO_LENGTH, move, heap, &function);
  napi_set_named_property(env, object, "move", function);
  for (int i = 0; i < FUNCTIONS; i++) {
    bound[i] = (Bound){heap, &table[i]};
    napi_create_function(env, table[i].name, NAPI_AUTO_LENGTH, call, &bound[i], &function);
    napi_set_named_property(env, object, table[i].name, function);
  }
  // Functions may be taken out of the object, so the space lives as long as the environment.
  napi_add_env_cleanup_hook(env, free, space);
  return object;
}

static napi_value set_threads(napi_env env, napi_callback_info info) {
  napi_value argument, result;
  size_t count = 1;
  int threads = 0;
  napi_get_cb_info(env, info, &count, &argument, 0, 0);
  if (count == 1 && napi_get_value_int32(env, argument, &threads) == napi_ok) pool_resize(threads);
  napi_create_int32(env, pool_size(), &result);
  return result;
}

static napi_value set_isa(napi_env env, napi_callback_info info) {
  napi_value argument, result;
  size_t count = 1, length;
  char name[16] = {0};
  napi_get_cb_info(env, info, &count, &argument, 0, 0);
  if (count == 1 && napi_get_value_string_utf8(env, argument, name, sizeof(name), &length) == napi_ok) gemm_use(name);
  const char *isa = gemm_isa();
  if (isa) napi_create_string_utf8(env, isa, NAPI_AUTO_LENGTH, &result);
  else napi_get_null(env, &result);
  return result;
}

// kernels(): how many arguments each kernel takes, by name.
static napi_value list_kernels(napi_env env, napi_callback_info info) {
  (void)info;
  napi_value object, count;
  napi_create_object(env, &object);
  for (int i = 0; i < FUNCTIONS; i++) {
    napi_create_int32(env, table[i].arguments, &count);
    napi_set_named_property(env, object, table[i].name, count);
  }
  return object;
}

// sources(): fingerprint of the kernel sources that this binary was made from.
static napi_value fingerprint(napi_env env, napi_callback_info info) {
  (void)info;
  napi_value text;
  napi_create_string_utf8(env, SOURCES, NAPI_AUTO_LENGTH, &text);
  return text;
}

// engine(): fingerprint of the version of @matforge/engine whose kernels these are.
static napi_value engine(napi_env env, napi_callback_info info) {
  (void)info;
  napi_value text;
  napi_create_string_utf8(env, ENGINE, NAPI_AUTO_LENGTH, &text);
  return text;
}

NAPI_MODULE_INIT() {
  const struct {
    const char *name;
    napi_callback function;
  } functions[] = {{"open", open_heap}, {"threads", set_threads}, {"isa", set_isa}, {"kernels", list_kernels}, {"sources", fingerprint}, {"engine", engine}};
  for (unsigned i = 0; i < sizeof(functions) / sizeof(*functions); i++) {
    napi_value function;
    napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].function, 0, &function);
    napi_set_named_property(env, exports, functions[i].name, function);
  }
  return exports;
}

// The native way: direct convolutions with few channels on planar pictures, as XLA custom calls for the CPU.
//
// Planar means one channel after another, so a vector register holds neighbouring pixels of one channel. A tile of
// pixels times output channels (forward), or of kernel taps times output channels (gradient), stays in registers while
// everything that adds to it streams by. Pictures are cut into bands of rows; a band is copied once into a zero-padded
// scratch, so the inner loops know no borders. Bands are the units that threads share. Which bands there are follows
// from the shapes alone and every number is summed in one order, so the bits do not depend on the number of threads.
//
// The same templates are compiled for AVX-512, AVX2 and the baseline; the processor decides at run time.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#define INLINE inline __attribute__((always_inline))

// Keeps a vector in a register: compilers would rather read it from memory again for every use.
#if defined(__x86_64__)
#define KEEP(vector) asm("" : "+v"(vector))
#else
#define KEEP(vector)
#endif

namespace {

// P members, N pictures each, H x W pixels, I channels in, O out, a kernel of tall x wide taps.
struct Shape {
  int64_t P, N, H, W, I, O, tall, wide;
  int64_t bands, rows;  // of a picture; of a band

  Shape(int64_t P, int64_t N, int64_t H, int64_t W, int64_t I, int64_t O, int64_t tall, int64_t wide)
      : P(P), N(N), H(H), W(W), I(I), O(O), tall(tall), wide(wide) {
    // About 4096 pixels keep a band in the cache; a few bands for every member keep the processors busy.
    int64_t wanted = std::max({int64_t{1}, H * W / 4096, (7 + N) / std::max<int64_t>(N, 1)});
    rows = std::max<int64_t>(4, (H + wanted - 1) / wanted);
    bands = (H + rows - 1) / rows;
  }
  int64_t units() const { return P * N * bands; }
};

// One band: rows [top, top + rows) of one picture of one member.
struct Band {
  int64_t member, picture, top, rows;

  Band(const Shape& s, int64_t unit)
      : member(unit / (s.N * s.bands)),
        picture(unit / s.bands),  // counted over all members
        top(unit % s.bands * s.rows),
        rows(std::min(s.rows, s.H - top)) {}
};

// A buffer of this thread that only ever grows.
float* scratch(int slot, int64_t size) {
  thread_local std::vector<float> buffers[2];
  auto& buffer = buffers[slot];
  if (int64_t(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

// Rows [top, top + rows) of all planes of a picture, `left` zeros before each and zeros up to `stride` behind;
// rows outside the picture are zeros.
void copy_padded(const float* from, float* to, int64_t planes, int64_t H, int64_t W, int64_t top, int64_t rows,
                 int64_t left, int64_t stride) {
  for (int64_t plane = 0; plane < planes; ++plane, from += H * W)
    for (int64_t row = top; row < top + rows; ++row, to += stride) {
      if (row < 0 || row >= H) {
        std::fill(to, to + stride, 0.0f);
      } else {
        std::fill(to, to + left, 0.0f);
        std::memcpy(to + left, from + row * W, W * sizeof(float));
        std::fill(to + left + W, to + stride, 0.0f);
      }
    }
}

template <int LANES, int REGISTERS>
struct Kernels {
  typedef float Vector __attribute__((vector_size(LANES * 4)));
  typedef float Loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

  static constexpr bool kMany = REGISTERS >= 32;
  // Output channels in one tile at most, and by their number the pixel vectors (forward) and taps (gradient) beside.
  static constexpr int kOutputs = kMany ? 6 : 5;
  static constexpr int kPixels[2][7] = {{0, 8, 4, 4, 2, 2}, {0, 8, 8, 4, 4, 4, 4}};
  static constexpr int kTaps[2][7] = {{0, 8, 5, 3, 2, 2}, {0, 12, 5, 5, 5, 5, 4}};

  // The next tile's output channels, of so many left: tiles of nearly equal size.
  static int64_t next_outputs(int64_t left) {
    int64_t tiles = (left + kOutputs - 1) / kOutputs;
    return (left + tiles - 1) / tiles;
  }

  static int64_t whole(int64_t width) { return (width + LANES - 1) / LANES * LANES; }
  static int64_t stride(const Shape& s) { return whole(s.W) + s.wide - 1; }

  // Forward: y = relu?(x * k + bias).

  struct Forward {
    const Shape& s;
    const float *x, *kernel, *bias;  // x: the padded band
    float* y;                        // the first output row of the band in the first plane
    int64_t stride, plane;           // of x: from row to row, from channel to channel
    bool relu;
  };

  template <int OUTPUTS, int PIXELS>
  static INLINE void forward_tile(const Forward& f, int64_t row, int64_t column, int64_t output) {
    Vector sums[OUTPUTS][PIXELS];
    for (int o = 0; o < OUTPUTS; ++o)
      for (int v = 0; v < PIXELS; ++v) sums[o][v] = Vector{} + f.bias[output + o];
    const float* weights = f.kernel + output;
    for (int64_t a = 0; a < f.s.tall; ++a)
      for (int64_t c = 0; c < f.s.wide; ++c) {
        const float* x = f.x + (row + a) * f.stride + column + c;
        for (int64_t i = 0; i < f.s.I; ++i, x += f.plane, weights += f.s.O) {
          Vector pixels[PIXELS];
#pragma GCC unroll 16
          for (int v = 0; v < PIXELS; ++v) pixels[v] = *reinterpret_cast<const Loose*>(x + v * LANES);
#pragma GCC unroll 16
          for (int o = 0; o < OUTPUTS; ++o)
#pragma GCC unroll 16
            for (int v = 0; v < PIXELS; ++v) sums[o][v] += pixels[v] * weights[o];
        }
      }
    for (int o = 0; o < OUTPUTS; ++o)
      for (int v = 0; v < PIXELS; ++v) {
        Vector value = sums[o][v];
        if (f.relu) value = value < 0 ? Vector{} : value;  // keeps NaN
        float* to = f.y + ((output + o) * f.s.H + row) * f.s.W + column + v * LANES;
        int64_t left = f.s.W - column - v * LANES;
        if (left >= LANES) *reinterpret_cast<Loose*>(to) = value;
        else if (left > 0) std::memcpy(to, &value, left * sizeof(float));
      }
  }

  template <int OUTPUTS, int PIXELS>
  static INLINE void forward_row(const Forward& f, int64_t row, int64_t column, int64_t output) {
    for (; column + PIXELS * LANES <= f.s.W; column += PIXELS * LANES)
      forward_tile<OUTPUTS, PIXELS>(f, row, column, output);
    if constexpr (PIXELS > 1) {
      if (column < f.s.W) forward_row<OUTPUTS, PIXELS / 2>(f, row, column, output);
    } else if (column < f.s.W) {
      forward_tile<OUTPUTS, 1>(f, row, column, output);
    }
  }

  template <int OUTPUTS>
  static INLINE void forward_outputs(const Forward& f, int64_t row, int64_t output, int64_t count) {
    if constexpr (OUTPUTS > 1) {
      if (count < OUTPUTS) return forward_outputs<OUTPUTS - 1>(f, row, output, count);
    }
    forward_row<OUTPUTS, kPixels[kMany][OUTPUTS]>(f, row, 0, output);
  }

  static INLINE void forward(const Shape& s, const float* x, const float* kernel, const float* bias, float* y,
                             bool relu, int64_t unit) {
    Band band(s, unit);
    int64_t stride = Kernels::stride(s), height = band.rows + s.tall - 1, plane = height * stride;
    float* padded = scratch(0, s.I * plane);
    copy_padded(x + band.picture * s.I * s.H * s.W, padded, s.I, s.H, s.W, band.top - s.tall / 2, height, s.wide / 2,
                stride);
    Forward f{s, padded, kernel + band.member * s.tall * s.wide * s.I * s.O, bias + band.member * s.O,
              y + (band.picture * s.O * s.H + band.top) * s.W, stride, plane, relu};
    for (int64_t row = 0; row < band.rows; ++row)
      for (int64_t output = 0, count; output < s.O; output += count) {
        count = next_outputs(s.O - output);
        forward_outputs<kOutputs>(f, row, output, count);
      }
  }

  // Gradient of the kernel: dk[a, c, i, o] = sum over pixels of x[y + a, x + c, i] * g[y, x, o].

  struct Gradient {
    const Shape& s;
    const float *x, *g;               // padded bands
    float* result;                    // [tall, wide, I, O]
    int64_t stride, x_plane, g_stride, g_plane, rows;
  };

  static INLINE float total(const Vector& sum) {
    float each[LANES];
    std::memcpy(each, &sum, sizeof sum);
    for (int half = LANES / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) each[lane] += each[lane + half];
    return each[0];
  }

  template <int OUTPUTS, int TAPS>
  static INLINE void gradient_tile(const Gradient& t, int64_t tap, int64_t input, int64_t output) {
    Vector sums[TAPS][OUTPUTS] = {};
    const float* x[TAPS];
    for (int k = 0; k < TAPS; ++k)
      x[k] = t.x + input * t.x_plane + (tap + k) / t.s.wide * t.stride + (tap + k) % t.s.wide;
    const float* g = t.g + output * t.g_plane;
    for (int64_t row = 0; row < t.rows; ++row) {
      int64_t from = row * t.stride;
      const float* given = g + row * t.g_stride;
      for (int64_t column = 0; column < t.s.W; column += LANES) {
        Vector slopes[OUTPUTS];
#pragma GCC unroll 16
        for (int o = 0; o < OUTPUTS; ++o) {
          slopes[o] = *reinterpret_cast<const Loose*>(given + o * t.g_plane + column);
          KEEP(slopes[o]);
        }
#pragma GCC unroll 16
        for (int k = 0; k < TAPS; ++k) {
          Vector pixels = *reinterpret_cast<const Loose*>(x[k] + from + column);
#pragma GCC unroll 16
          for (int o = 0; o < OUTPUTS; ++o) sums[k][o] += pixels * slopes[o];
        }
      }
    }
    for (int k = 0; k < TAPS; ++k)
      for (int o = 0; o < OUTPUTS; ++o)
        t.result[((tap + k) * t.s.I + input) * t.s.O + output + o] = total(sums[k][o]);
  }

  template <int OUTPUTS, int TAPS>
  static INLINE void gradient_taps(const Gradient& t, int64_t tap, int64_t input, int64_t output) {
    int64_t all = t.s.tall * t.s.wide;
    for (; tap + TAPS <= all; tap += TAPS) gradient_tile<OUTPUTS, TAPS>(t, tap, input, output);
    if constexpr (TAPS > 1) {
      if (tap < all) gradient_taps<OUTPUTS, TAPS / 2>(t, tap, input, output);
    }
  }

  template <int OUTPUTS>
  static INLINE void gradient_outputs(const Gradient& t, int64_t input, int64_t output, int64_t count) {
    if constexpr (OUTPUTS > 1) {
      if (count < OUTPUTS) return gradient_outputs<OUTPUTS - 1>(t, input, output, count);
    }
    gradient_taps<OUTPUTS, kTaps[kMany][OUTPUTS]>(t, 0, input, output);
  }

  static INLINE void gradient(const Shape& s, const float* x, const float* g, float* parts, int64_t unit) {
    Band band(s, unit);
    int64_t stride = Kernels::stride(s), height = band.rows + s.tall - 1;
    int64_t g_stride = whole(s.W);
    float* padded = scratch(0, s.I * height * stride);
    float* given = scratch(1, s.O * band.rows * g_stride);
    copy_padded(x + band.picture * s.I * s.H * s.W, padded, s.I, s.H, s.W, band.top - s.tall / 2, height, s.wide / 2,
                stride);
    copy_padded(g + band.picture * s.O * s.H * s.W, given, s.O, s.H, s.W, band.top, band.rows, 0, g_stride);
    Gradient t{s, padded, given, parts + unit * s.tall * s.wide * s.I * s.O, stride, height * stride, g_stride,
               band.rows * g_stride, band.rows};
    for (int64_t input = 0; input < s.I; ++input)
      for (int64_t output = 0, count; output < s.O; output += count) {
        count = next_outputs(s.O - output);
        gradient_outputs<kOutputs>(t, input, output, count);
      }
  }
};

// The same for three kinds of processor.

using ForwardUnit = void (*)(const Shape&, const float*, const float*, const float*, float*, bool, int64_t);
using GradientUnit = void (*)(const Shape&, const float*, const float*, float*, int64_t);
struct Level {
  const char* name;
  ForwardUnit forward;
  GradientUnit gradient;
};

#define LEVEL(name, target, lanes, registers)                                                                        \
  target void forward_##name(const Shape& s, const float* x, const float* k, const float* b, float* y, bool relu,    \
                             int64_t unit) {                                                                         \
    Kernels<lanes, registers>::forward(s, x, k, b, y, relu, unit);                                                   \
  }                                                                                                                  \
  target void gradient_##name(const Shape& s, const float* x, const float* g, float* parts, int64_t unit) {          \
    Kernels<lanes, registers>::gradient(s, x, g, parts, unit);                                                       \
  }                                                                                                                  \
  constexpr Level k_##name{#name, forward_##name, gradient_##name};

LEVEL(baseline, , 4, 16)
#if defined(__x86_64__)
LEVEL(avx2, __attribute__((target("avx2,fma"))), 8, 16)
LEVEL(avx512, __attribute__((target("avx512f,fma"))), 16, 32)
#endif

// The best that this processor can do, or the one of the name wanted; null if it cannot do that.
const Level* find_level(const char* wanted) {
  auto fits = [wanted](const Level& level) { return !*wanted || !std::strcmp(wanted, level.name); };
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (fits(k_avx512) && fma && __builtin_cpu_supports("avx512f")) return &k_avx512;
  if (fits(k_avx2) && fma) return &k_avx2;
#endif
  return fits(k_baseline) ? &k_baseline : nullptr;
}

const Level* level = nullptr;  // set once, before any call

// Runs work(unit) for all units on the threads of the pool and the caller's. A helper that starts late finds nothing to
// do, so nobody ever waits for a thread that has not begun.
template <typename Work>
void share(ffi::ThreadPool& pool, int64_t units, const Work& work) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto progress = std::make_shared<Progress>();
  auto help = [progress, units, &work] {  // `work` lives until all units are done
    int64_t done = 0;
    for (int64_t unit; (unit = progress->next.fetch_add(1)) < units; ++done) work(unit);
    if (done > 0 && progress->done.fetch_add(done) + done == units) {
      std::lock_guard<std::mutex> lock(progress->mutex);
      progress->finished.notify_all();
    }
  };
  int64_t helpers = std::min(pool.num_threads() - 1, units - 1);
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(help)(help));
  help();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->finished.wait(lock, [&] { return progress->done.load() == units; });
}

using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Floats>;

// x [P, N, H, W, I] and y [P, N, H, W, O], planar in memory; kernel [P, tall, wide, I, O]; bias [P, O].
ffi::Error Convolve(ffi::ThreadPool pool, Floats x, Floats kernel, Floats bias, Result y, bool relu) {
  auto d = x.dimensions(), k = kernel.dimensions();
  Shape s(d[0], d[1], d[2], d[3], d[4], k[4], k[1], k[2]);
  const float *from = x.typed_data(), *weights = kernel.typed_data(), *offsets = bias.typed_data();
  float* to = y->typed_data();
  share(pool, s.units(), [&](int64_t unit) { level->forward(s, from, weights, offsets, to, relu, unit); });
  return ffi::Error::Success();
}

// x [P, N, H, W, I] and g [P, N, H, W, O], planar in memory; result [P, tall, wide, I, O].
ffi::Error KernelGradient(ffi::ThreadPool pool, Floats x, Floats g, Result result) {
  auto d = x.dimensions(), k = result->dimensions();
  Shape s(d[0], d[1], d[2], d[3], d[4], k[4], k[1], k[2]);
  int64_t size = s.tall * s.wide * s.I * s.O;
  std::unique_ptr<float[]> parts(new float[s.units() * size]);
  const float *from = x.typed_data(), *given = g.typed_data();
  share(pool, s.units(), [&](int64_t unit) { level->gradient(s, from, given, parts.get(), unit); });
  const float* part = parts.get();
  for (int64_t member = 0; member < s.P; ++member) {
    float* sum = result->typed_data() + member * size;
    std::fill(sum, sum + size, 0.0f);
    for (int64_t band = 0; band < s.N * s.bands; ++band, part += size)
      for (int64_t i = 0; i < size; ++i) sum[i] += part[i];
  }
  return ffi::Error::Success();
}

}  // namespace

// Chooses the instruction set, the best one for an empty name. Gives its name, or null if there is no such thing here.
extern "C" const char* maskprune_level(const char* wanted) {
  const Level* found = find_level(wanted);
  if (!found) return nullptr;
  level = found;
  return level->name;
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    maskprune_convolve, Convolve,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>().Attr<bool>("relu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(maskprune_kernel_gradient, KernelGradient,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Ret<Floats>());

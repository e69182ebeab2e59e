// The native way: direct convolutions with few channels on planar pictures, as XLA custom calls for the CPU.
//
// Planar means one channel after another, so a vector register holds neighbouring pixels of one channel. A tile of
// pixels times output channels (forward), or of kernel taps times channels (gradient), stays in registers while
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

// Keeps a vector ("+v") or a pointer ("+r") in a register: compilers would rather read or add it up for every use.
#if defined(__x86_64__)
#define KEEP(kind, value) asm("" : kind(value))
#define PAUSE() __builtin_ia32_pause()
#else
#define KEEP(kind, value)
#define PAUSE()
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
  int64_t taps() const { return tall * wide; }
  int64_t units() const { return N * bands; }  // of a member
};

// One band: rows [top, top + rows) of one picture of one member.
struct Band {
  int64_t member, picture, top, rows;

  Band(const Shape& s, int64_t unit)
      : member(unit / s.units()),
        picture(unit / s.bands),  // counted over all members
        top(unit % s.bands * s.rows),
        rows(std::min(s.rows, s.H - top)) {}
};

// The arrays of a call, as the handlers below describe them; those that a call lacks are null.
struct Arrays {
  const float *x, *kernel, *bias;
  float* y;
  const float *g, *gate;
  float* dx;
  bool relu;
};

// A buffer of this thread that only ever grows, aligned for every vector.
template <typename Number>
Number* scratch(int slot, int64_t size) {
  thread_local std::vector<Number> buffers[3];
  auto& buffer = buffers[slot];
  if (int64_t(buffer.size()) < size + 16) buffer.resize(size + 16);
  return reinterpret_cast<Number*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) / 64 * 64);
}

template <int LANES, int REGISTERS>
struct Kernels {
  typedef float Vector __attribute__((vector_size(LANES * 4)));
  typedef int32_t Bits __attribute__((vector_size(LANES * 4)));
  typedef float Loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

  static constexpr bool kMany = REGISTERS >= 32;
  // Channels in one tile at most, and by their number the rows (forward) and taps (gradient) beside.
  static constexpr int kChannels = kMany ? 6 : 5;
  static constexpr int kPixels = kMany ? 4 : 2;  // vectors
  static constexpr int kRows[2][7] = {{0, 4, 2, 2, 1, 1}, {0, 4, 2, 2, 1, 1, 1}};
  static constexpr int kTaps[2][7] = {{0, 8, 5, 3, 2, 2}, {0, 12, 5, 5, 5, 5, 4}};

  static INLINE Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
  // One number in all lanes, as integers: of what says so in floats, GCC makes an addition or worse.
  static INLINE Vector everywhere(const float& number) {
    int32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return Vector(bits | Bits{});
  }

  // The sum of all lanes, one half added to the other. Of plain loops, GCC makes one addition after another.
  static INLINE float total(const Vector& sums) {
    const float* lanes = reinterpret_cast<const float*>(&sums);
    using Half = Kernels<LANES / 2, REGISTERS>;
    if constexpr (LANES > 4) return Half::total(Half::load(lanes) + Half::load(lanes + LANES / 2));
    else return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  }

  // The next tile's channels, of so many left: tiles of nearly equal size.
  static int64_t next_channels(int64_t left) {
    int64_t tiles = (left + kChannels - 1) / kChannels;
    return (left + tiles - 1) / tiles;
  }

  // The planes of a band with zeros around them: above and below the picture, between the rows and behind a plane.
  struct Padded {
    float* data;
    int64_t stride, plane, inside;  // from row to row; from plane to plane; from `data` to the band's first pixel
  };

  static int64_t whole(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

  // At least so many zeros; what follows is written later.
  static INLINE float* zeros(float* to, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) *reinterpret_cast<Loose*>(to + i) = Vector{};
    return to + count;
  }

  // Copies a band and `beyond` rows on both sides, with 0 where `gate`, if there is one, is not positive. Adds up the
  // band's planes, if `totals` are wanted. A vector may be read behind the last row.
  static INLINE Padded pad(const Shape& s, const Band& band, int slot, const float* from, const float* gate,
                           int64_t planes, int64_t beyond, float* totals) {
    int64_t stride = s.W + s.wide - 1, height = band.rows + 2 * beyond, inside = beyond * stride + s.wide / 2;
    int64_t plane = whole(height * stride + s.wide / 2 + LANES);
    float* data = scratch<float>(slot, planes * plane + LANES) + (whole(inside) - inside);  // aligns pixels
    for (int64_t n = 0; n < planes; ++n) {
      float *to = zeros(data + n * plane, s.wide / 2), rest = 0;
      Vector sums = {};
      for (int64_t row = -beyond; row < band.rows + beyond; ++row) {
        int64_t y = band.top + row, at = ((band.picture * planes + n) * s.H + y) * s.W, column = 0;
        bool counts = totals && row >= 0 && row < band.rows;
        if (y < 0 || y >= s.H) zeros(to, column = s.W);  // outside the picture
        for (; column + LANES <= s.W; column += LANES) {
          Vector pixels = load(from + at + column);
          if (gate) pixels = load(gate + at + column) > 0 ? pixels : Vector{};
          if (counts) sums += pixels;
          *reinterpret_cast<Loose*>(to + column) = pixels;
        }
        for (; column < s.W; ++column) {
          to[column] = !gate || gate[at + column] > 0 ? from[at + column] : 0;
          if (counts) rest += to[column];
        }
        to = zeros(to + s.W, s.wide - 1);
      }
      std::fill(to, data + (n + 1) * plane, 0.0f);
      if (totals) totals[n] = total(sums) + rest;
    }
    return {data, stride, plane, inside};
  }

  // Forward: y = relu?(x * k + bias).

  struct Forward {
    const Shape& s;
    Padded x;
    const int64_t* offsets;  // of everything that adds to a pixel: [tall and more, wide, I]
    const float *kernel, *bias;
    float* y;  // the first output row of the band in the first plane
    bool relu;
  };

  // Several output rows share what they read: input row r is tap a of output row r - a. The first phases serve the
  // first output rows, then one serves all of them, the last phases serve the last rows.
  template <int OUTPUTS, int ROWS, int PIXELS, int PHASE = 0>
  static INLINE void forward_phases(Vector (&sums)[ROWS][OUTPUTS][PIXELS], const Forward& f, const float* x,
                                    const float* kernel) {
    constexpr int kFirst = PHASE < ROWS ? 0 : PHASE - ROWS + 1, kLast = PHASE < ROWS ? PHASE : ROWS - 1;
    int64_t step = f.s.wide * f.s.I, outputs = f.s.O;
    int64_t begin = PHASE < ROWS ? PHASE : f.s.tall + PHASE - ROWS;
    int64_t end = PHASE < ROWS - 1 ? PHASE + 1 : f.s.tall + PHASE - ROWS + 1;
    const float* weights = kernel + begin * step * outputs;
    const int64_t *offset = f.offsets + begin * step, *last = f.offsets + end * step;
    for (; offset != last; ++offset, weights += outputs) {
      Vector pixels[PIXELS];
      const float* from = x + *offset;
      KEEP("+r", from);
#pragma GCC unroll 16
      for (int v = 0; v < PIXELS; ++v) pixels[v] = load(from + v * LANES);
#pragma GCC unroll 16
      for (int r = kFirst; r <= kLast; ++r)
#pragma GCC unroll 16
        for (int o = 0; o < OUTPUTS; ++o) {
          Vector weight = everywhere(weights[o - r * step * outputs]);
          KEEP("+v", weight);
#pragma GCC unroll 16
          for (int v = 0; v < PIXELS; ++v) sums[r][o][v] += pixels[v] * weight;
        }
    }
    if constexpr (PHASE + 2 < 2 * ROWS) forward_phases<OUTPUTS, ROWS, PIXELS, PHASE + 1>(sums, f, x, kernel);
  }

  template <int OUTPUTS, int ROWS, int PIXELS>
  static INLINE void forward_tile(const Forward& f, int64_t row, int64_t column, int64_t output) {
    Vector sums[ROWS][OUTPUTS][PIXELS];
    for (int r = 0; r < ROWS; ++r)
      for (int o = 0; o < OUTPUTS; ++o)
        for (int v = 0; v < PIXELS; ++v) sums[r][o][v] = everywhere(f.bias ? f.bias[output + o] : 0);
    forward_phases<OUTPUTS, ROWS, PIXELS>(sums, f, f.x.data + row * f.x.stride + column, f.kernel + output);
    for (int r = 0; r < ROWS; ++r)
      for (int o = 0; o < OUTPUTS; ++o)
        for (int v = 0; v < PIXELS; ++v) {
          Vector value = sums[r][o][v];
          if (f.relu) value = value < 0 ? Vector{} : value;  // keeps NaN
          float* to = f.y + ((output + o) * f.s.H + row + r) * f.s.W + column + v * LANES;
          int64_t left = f.s.W - column;  // several vectors are only taken where all of them fit
          if (PIXELS > 1 || left >= LANES) *reinterpret_cast<Loose*>(to) = value;
          else std::memcpy(to, &value, left * sizeof(float));
        }
  }

  template <int OUTPUTS, int ROWS, int PIXELS>
  static INLINE void forward_columns(const Forward& f, int64_t row, int64_t column, int64_t output) {
    for (; column + PIXELS * LANES <= f.s.W; column += PIXELS * LANES)
      forward_tile<OUTPUTS, ROWS, PIXELS>(f, row, column, output);
    if constexpr (PIXELS > 1) {
      if (column < f.s.W) forward_columns<OUTPUTS, ROWS, PIXELS / 2>(f, row, column, output);
    } else if (column < f.s.W) {
      forward_tile<OUTPUTS, ROWS, 1>(f, row, column, output);
    }
  }

  // Rows [row, rows).
  template <int OUTPUTS, int ROWS>
  static INLINE void forward_rows(const Forward& f, int64_t row, int64_t rows, int64_t output) {
    if (ROWS <= f.s.tall)
      for (; row + ROWS <= rows; row += ROWS) forward_columns<OUTPUTS, ROWS, kPixels>(f, row, 0, output);
    if constexpr (ROWS > 1) {
      if (row < rows) forward_rows<OUTPUTS, ROWS / 2>(f, row, rows, output);
    }
  }

  template <int OUTPUTS>
  static INLINE void forward_outputs(const Forward& f, int64_t row, int64_t rows, int64_t output, int64_t count) {
    if constexpr (OUTPUTS > 1) {
      if (count < OUTPUTS) return forward_outputs<OUTPUTS - 1>(f, row, rows, output, count);
    }
    forward_rows<OUTPUTS, kRows[kMany][OUTPUTS]>(f, row, rows, output);
  }

  static INLINE void convolve(const Shape& s, const Band& band, const Padded& x, const float* kernel, const float* bias,
                              float* y, bool relu) {
    constexpr int kMost = 4;  // rows that share what they read
    int64_t* offsets = scratch<int64_t>(0, (s.tall + kMost - 1) * s.wide * s.I);
    for (int64_t a = 0, n = 0; a < s.tall + kMost - 1; ++a)
      for (int64_t c = 0; c < s.wide; ++c)
        for (int64_t i = 0; i < s.I; ++i) offsets[n++] = a * x.stride + c + i * x.plane;
    Forward f{s, x, offsets, kernel, bias, y + (band.picture * s.O * s.H + band.top) * s.W, relu};
    for (int64_t row = 0; row < band.rows; row += kMost)
      for (int64_t output = 0, count; output < s.O; output += count) {
        count = next_channels(s.O - output);
        forward_outputs<kChannels>(f, row, std::min(row + kMost, band.rows), output, count);
      }
  }

  static INLINE void forward(const Shape& s, const Arrays& all, int64_t unit) {
    Band band(s, unit);
    Padded x = pad(s, band, 0, all.x, nullptr, s.I, s.tall / 2, nullptr);
    const float* kernel = all.kernel + band.member * s.taps() * s.I * s.O;
    convolve(s, band, x, kernel, all.bias + band.member * s.O, all.y, all.relu);
  }

  // Gradient of the kernel: dk[a, c, i, o] = sum over pixels of x[y + a, x + c, i] * g[y, x, o]. One of the two stays,
  // the other one moves by a tap. Both have rows of one length with zeros between them, so a single loop runs over all
  // pixels: where the one that stays has its zeros, nothing is added.

  struct Gradient {
    const Shape& s;
    Padded moves, stays;
    int64_t pixels;
    float* result;
    int64_t tap_step, moves_step, stays_step;  // in the result
  };

  template <int STAYS, int TAPS>
  static INLINE void gradient_tile(const Gradient& t, int64_t tap, int64_t moved, int64_t stayed) {
    Vector sums[TAPS][STAYS], kept[TAPS][STAYS];
#pragma GCC unroll 16
    for (int k = 0; k < TAPS; ++k)
#pragma GCC unroll 16
      for (int n = 0; n < STAYS; ++n) sums[k][n] = Vector{};
    const float *moves[TAPS], *stays[STAYS];
    for (int k = 0; k < TAPS; ++k)
      moves[k] = t.moves.data + moved * t.moves.plane + (tap + k) / t.s.wide * t.moves.stride + (tap + k) % t.s.wide;
    for (int n = 0; n < STAYS; ++n) stays[n] = t.stays.data + t.stays.inside + (stayed + n) * t.stays.plane;
    for (int64_t p = 0; p < t.pixels; p += LANES) {
      Vector fixed[STAYS];
#pragma GCC unroll 16
      for (int n = 0; n < STAYS; ++n) {
        Vector one = *reinterpret_cast<const Vector*>(stays[n] + p);
        KEEP("+v", one);
        fixed[n] = one;
      }
#pragma GCC unroll 16
      for (int k = 0; k < TAPS; ++k) {
        Vector pixels = load(moves[k] + p);
#pragma GCC unroll 16
        for (int n = 0; n < STAYS; ++n) sums[k][n] += pixels * fixed[n];
      }
    }
#pragma GCC unroll 16
    for (int k = 0; k < TAPS; ++k)
#pragma GCC unroll 16
      for (int n = 0; n < STAYS; ++n) kept[k][n] = sums[k][n];
    for (int k = 0; k < TAPS; ++k)
      for (int n = 0; n < STAYS; ++n)
        t.result[(tap + k) * t.tap_step + moved * t.moves_step + (stayed + n) * t.stays_step] = total(kept[k][n]);
  }

  template <int STAYS, int TAPS>
  static INLINE void gradient_taps(const Gradient& t, int64_t tap, int64_t moved, int64_t stayed) {
    for (; tap + TAPS <= t.s.taps(); tap += TAPS) gradient_tile<STAYS, TAPS>(t, tap, moved, stayed);
    if constexpr (TAPS > 1) {
      if (tap < t.s.taps()) gradient_taps<STAYS, TAPS / 2>(t, tap, moved, stayed);
    }
  }

  template <int STAYS>
  static INLINE void gradient_stays(const Gradient& t, int64_t moved, int64_t stayed, int64_t count) {
    if constexpr (STAYS > 1) {
      if (count < STAYS) return gradient_stays<STAYS - 1>(t, moved, stayed, count);
    }
    gradient_taps<STAYS, kTaps[kMany][STAYS]>(t, 0, moved, stayed);
  }

  // All that a band adds to the gradients: dk and db go to `part`, its pixels of dx to their place.
  static INLINE void backward(const Shape& s, const Arrays& all, int64_t unit, float* part) {
    Band band(s, unit);
    // The one with more channels stays, as a vector that moves is read for every tap again. It needs no rows beyond.
    bool turn = s.O < s.I;
    int64_t size = s.taps() * s.I * s.O, beyond = s.tall / 2;
    Padded g = pad(s, band, 0, all.g, all.gate, s.O, turn || all.dx ? beyond : 0, part + size);
    Padded x = pad(s, band, 1, all.x, nullptr, s.I, turn ? 0 : beyond, nullptr);
    int64_t pixels = (band.rows - 1) * x.stride + s.W;
    if (all.dx) {  // a convolution with the kernel turned around
      const float* kernel = all.kernel + band.member * size;
      float* turned = scratch<float>(2, size);
      for (int64_t tap = s.taps(); tap-- > 0;)
        for (int64_t o = 0; o < s.O; ++o)
          for (int64_t i = 0; i < s.I; ++i) *turned++ = kernel[(tap * s.I + i) * s.O + o];
      Shape back = s;
      std::swap(back.I, back.O);
      convolve(back, band, g, turned - size, nullptr, all.dx, false);
    }
    Gradient t = turn ? Gradient{s, g, x, pixels, part + (s.taps() - 1) * s.I * s.O, -s.I * s.O, 1, s.O}
                      : Gradient{s, x, g, pixels, part, s.I * s.O, s.O, 1};
    int64_t moves = turn ? s.O : s.I, stays = turn ? s.I : s.O;
    for (int64_t n = 0; n < stays; ++n) {  // the last vector ends in zeros
      float* end = t.stays.data + t.stays.inside + n * t.stays.plane + pixels;
      std::fill(end, end + LANES, 0.0f);
    }
    for (int64_t moved = 0; moved < moves; ++moved)
      for (int64_t stayed = 0, count; stayed < stays; stayed += count) {
        count = next_channels(stays - stayed);
        gradient_stays<kChannels>(t, moved, stayed, count);
      }
  }
};

// The same for three kinds of processor.

struct Level {
  const char* name;
  void (*forward)(const Shape&, const Arrays&, int64_t unit);
  void (*backward)(const Shape&, const Arrays&, int64_t unit, float* part);
};

#define LEVEL(name, target, lanes, registers)                                                                        \
  target void forward_##name(const Shape& s, const Arrays& all, int64_t unit) {                                      \
    Kernels<lanes, registers>::forward(s, all, unit);                                                                \
  }                                                                                                                  \
  target void backward_##name(const Shape& s, const Arrays& all, int64_t unit, float* part) {                        \
    Kernels<lanes, registers>::backward(s, all, unit, part);                                                         \
  }                                                                                                                  \
  constexpr Level k_##name{#name, forward_##name, backward_##name};

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
// do, so nobody ever waits for a thread that has not begun. The caller begins with the first unit and helpers with the
// last one: with few threads, a band of the next layer often meets the cache that its inputs are in.
template <typename Work>
void share(ffi::ThreadPool& pool, int64_t units, const Work& work) {
  struct Progress {
    std::atomic<int64_t> taken{0}, helped{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto progress = std::make_shared<Progress>();
  auto help = [progress, units, &work](bool helper) {  // `work` lives until all units are done
    int64_t done = 0;
    for (; progress->taken.fetch_add(1) < units; ++done)
      work(helper ? units - 1 - progress->helped.fetch_add(1) : done);
    if (done > 0 && progress->done.fetch_add(done) + done == units) {
      std::lock_guard<std::mutex> lock(progress->mutex);
      progress->finished.notify_all();
    }
  };
  int64_t helpers = std::min(pool.num_threads() - 1, units - 1);
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([help] { help(true); });
  help(false);
  for (int spins = 0; spins < 1000 && progress->done.load() < units; ++spins) PAUSE();  // waking up would take longer
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->finished.wait(lock, [&] { return progress->done.load() == units; });
}

using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Floats>;

// x [P, N, H, W, I] and y [P, N, H, W, O], planar in memory; kernel [P, tall, wide, I, O]; bias [P, O].
ffi::Error Convolve(ffi::ThreadPool pool, Floats x, Floats kernel, Floats bias, Result y, bool relu) {
  auto d = x.dimensions(), k = kernel.dimensions();
  Shape s(d[0], d[1], d[2], d[3], d[4], k[4], k[1], k[2]);
  Arrays all{x.typed_data(), kernel.typed_data(), bias.typed_data(), y->typed_data()};
  all.relu = relu;
  share(pool, s.P * s.units(), [&](int64_t unit) { level->forward(s, all, unit); });
  return ffi::Error::Success();
}

// The gradients of x, kernel and bias from that of y, g. With `relu`, y is the layer's output: where it is not positive
// g counts as 0. An empty dx is not computed, nor the kernel read. Shapes as above.
ffi::Error Backward(ffi::ThreadPool pool, Floats x, Floats kernel, Floats y, Floats g, Result dkernel, Result dbias,
                    Result dx, bool relu) {
  auto d = x.dimensions(), k = dkernel->dimensions();
  Shape s(d[0], d[1], d[2], d[3], d[4], k[4], k[1], k[2]);
  Arrays all{x.typed_data(), kernel.typed_data()};
  all.g = g.typed_data();
  all.gate = relu ? y.typed_data() : nullptr;
  all.dx = dx->element_count() ? dx->typed_data() : nullptr;
  // Every band's part is kept until all of them are done and added in order; some members at a time, to bound them.
  int64_t weights = s.taps() * s.I * s.O, size = weights + s.O, units = s.units();
  int64_t members = std::min(s.P, std::max<int64_t>(1, (int64_t{1} << 20) / (units * size)));
  std::unique_ptr<float[]> parts(new float[members * units * size]);
  for (int64_t first = 0; first < s.P; first += members) {
    int64_t count = std::min(members, s.P - first);
    share(pool, count * units, [&](int64_t unit) {
      level->backward(s, all, first * units + unit, parts.get() + unit * size);
    });
    for (int64_t n = 0; n < count; ++n) {
      float* part = parts.get() + n * units * size;
      for (int64_t unit = 1; unit < units; ++unit)
        for (int64_t i = 0; i < size; ++i) part[i] += part[unit * size + i];
      std::copy(part, part + weights, dkernel->typed_data() + (first + n) * weights);
      std::copy(part + weights, part + size, dbias->typed_data() + (first + n) * s.O);
    }
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    maskprune_backward, Backward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>()
        .Ret<Floats>().Ret<Floats>().Attr<bool>("relu"));

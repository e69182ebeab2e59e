// The native way on CUDA: direct convolutions with few channels on planar pictures.
//
// A block of threads copies a tile of the pictures with its rim into shared memory, zeros outside of the picture, so
// the inner loops know no borders. Forward, a thread keeps 4 pixels of a few rows in every output channel in registers
// while taps and input channels stream by. For the gradient of the kernel it keeps all output channels of some taps in
// one row of the kernel, and pixels stream by; what blocks found is added up afterwards, in one order.
//
// Compiled at run time, once for every kind of layer: `cuda.py` defines the names in capitals. P members, N pictures
// each, H x W pixels, I channels in, O out, a kernel of TALL x WIDE taps. Sums are float32, never less.

__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ constexpr int at_most(int a, int b) { return a < b ? a : b; }

constexpr int kThreads = 128, kAcross = 16, kDown = kThreads / kAcross;  // of a block; side by side; in rows
constexpr int kWide = 4 * kAcross, kColumns = ceil_div(W, kWide);        // columns of a tile; tiles across a picture
constexpr int kTaps = at_most(WIDE, 8), kPieces = ceil_div(WIDE, kTaps);  // of a row of the kernel at a time
constexpr int kRim = ceil_div(WIDE / 2, 4) * 4, kShift = kRim - WIDE / 2;  // before a tile; not seen of it
constexpr int kWindow = ceil_div(kTaps + 3 + kShift, 4);                   // vectors that 4 pixels see of a row
constexpr int kTight = kWide - 4 + (kPieces - 1) * kTaps + 4 * kWindow;    // columns of a tile with its rim
constexpr int kPitch = kTight + (kTight % 8 ? 0 : 4);         // an odd number of vectors: no bank of memory twice
constexpr int kResident = kTaps > 5 ? 1 : 6;                  // blocks that share a processor's registers, at least
constexpr int kUnroll = TALL * WIDE <= 64 ? TALL + 4 : 1;     // keeps long kernels short

extern __shared__ float4 memory[];

// Writes value(0), value(1), ..., at most MOST of them, to shared memory. Several of a thread are under way from
// device memory at once: nothing is done with the first one before the last one is asked for.
template <int MOST, typename Number, typename Value>
__device__ void fill(Number* to, int count, const Value& value) {
  constexpr int kEach = ceil_div(MOST, kThreads), kBatch = ceil_div(kEach, ceil_div(kEach, 8));
  for (int first = threadIdx.x; first < count; first += kBatch * kThreads) {
    Number values[kBatch];
#pragma unroll
    for (int n = 0; n < kBatch; ++n) values[n] = value(at_most(first + n * kThreads, count - 1));
#pragma unroll
    for (int n = 0; n < kBatch; ++n)
      if (first + n * kThreads < count) to[first + n * kThreads] = values[n];
  }
}

__device__ float pass(float value, float gate) { return gate > 0 ? value : 0; }
__device__ float4 pass(float4 a, float4 b) { return {pass(a.x, b.x), pass(a.y, b.y), pass(a.z, b.z), pass(a.w, b.w)}; }

// Copies a tile of some planes, at most MOST, with SEEN rows of PITCH numbers from (top, left) on, and 0 where `gate`
// is not positive. What lies outside is read somewhere else and dropped: a jump would wait for it.
template <bool GATED, int MOST, int SEEN, int PITCH, typename Number>
__device__ void stage_as(float* to, const float* from, const float* gate, int planes, int top, int left) {
  constexpr int kNumbers = sizeof(Number) / sizeof(float), kLine = PITCH / kNumbers;
  fill<MOST * SEEN * kLine>(reinterpret_cast<Number*>(to), planes * SEEN * kLine, [=](int n) {
    int line = n / kLine, row = top + line % SEEN, column = left + n % kLine * kNumbers;
    bool inside = 0 <= row && row < H && 0 <= column && column < W;
    unsigned place = inside ? (line / SEEN * H + row) * W + column : 0;
    Number value = *reinterpret_cast<const Number*>(from + place);
    if (GATED) value = pass(value, *reinterpret_cast<const Number*>(gate + place));
    return inside ? value : Number{};
  });
}

template <bool GATED, int MOST, int SEEN, int PITCH>
__device__ void stage(float* to, const float* from, const float* gate, int planes, int top, int left) {
  if constexpr (W % 4 == 0) stage_as<GATED, MOST, SEEN, PITCH, float4>(to, from, gate, planes, top, left);
  else stage_as<GATED, MOST, SEEN, PITCH, float>(to, from, gate, planes, top, left);
}

// Vectors of neighbouring numbers from shared memory.
template <int VECTORS>
__device__ void read(float (&to)[4 * VECTORS], const float* from) {
#pragma unroll
  for (int n = 0; n < VECTORS; ++n) {
    float4 four = reinterpret_cast<const float4*>(from)[n];
    to[4 * n] = four.x, to[4 * n + 1] = four.y, to[4 * n + 2] = four.z, to[4 * n + 3] = four.w;
  }
}

// y = x * kernel + bias, for one tile of one picture and some output channels. With TURNED the kernel is that of the
// layer whose gradient is carried back: its taps in reverse order, its channels the other way round.
template <int IN, int OUT, bool GATED, bool TURNED, bool RECTIFIED>
__device__ void convolve(const float* x, const float* gate, const float* kernel, const float* bias, float* y,
                         int block) {
  constexpr int kTiles = ceil_div(OUT, CHANNELS), kOut = ceil_div(OUT, kTiles);  // output channels at a time
  constexpr int kRows = at_most(ROWS, 10 / kOut), kHigh = kDown * kRows, kSeen = kHigh + TALL - 1;
  constexpr int kSteps = ceil_div(H, kHigh), kDepth = at_most(IN, DEPTH);
  constexpr int kVectors = ceil_div(kTaps * kOut, 4), kWeights = TALL * kPieces * 4 * kVectors;  // of one channel in
  int left = block % kColumns * kWide, top = block / kColumns % kSteps * kHigh;
  int first = block / (kColumns * kSteps) % kTiles * kOut, picture = block / (kColumns * kSteps * kTiles);
  int across = threadIdx.x % kAcross * 4, down = threadIdx.x / kAcross * kRows;
  float* weights = reinterpret_cast<float*>(memory);
  float* tile = weights + kDepth * kWeights;
  kernel += (long long)(picture / N) * TALL * WIDE * IN * OUT;
  x += (long long)picture * IN * H * W;
  if (GATED) gate += (long long)picture * IN * H * W;

  float sums[kRows][kOut][4];
#pragma unroll
  for (int o = 0; o < kOut; ++o) {
    float start = bias && first + o < OUT ? bias[picture / N * OUT + first + o] : 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r][o][0] = sums[r][o][1] = sums[r][o][2] = sums[r][o][3] = start;
  }
  for (int begin = 0; begin < IN; begin += kDepth) {
    int depth = at_most(kDepth, IN - begin);
    if (begin) __syncthreads();
    fill<kDepth * kWeights>(weights, depth * kWeights, [=](int n) {
      int i = begin + n / kWeights, a = n / (kWeights / TALL) % TALL, place = n % (4 * kVectors);
      int c = n / (4 * kVectors) % kPieces * kTaps + place / kOut, o = first + place % kOut;
      bool real = c < WIDE && o < OUT && place < kTaps * kOut;
      int turned = (((TALL - 1 - a) * WIDE + WIDE - 1 - c) * OUT + o) * IN + i;
      float value = kernel[!real ? 0 : TURNED ? turned : ((a * WIDE + c) * IN + i) * OUT + o];
      return real ? value : 0;
    });
    long long skipped = (long long)begin * H * W;
    const float* shut = GATED ? gate + skipped : gate;
    stage<GATED, kDepth, kSeen, kPitch>(tile, x + skipped, shut, depth, top - TALL / 2, left - kRim);
    __syncthreads();
    for (int i = 0; i < depth; ++i)
      for (int piece = 0; piece < kPieces; ++piece)
#pragma unroll kUnroll
        for (int row = 0; row < kSeen - kHigh + kRows; ++row) {
          float pixels[4 * kWindow];
          read<kWindow>(pixels, tile + (i * kSeen + down + row) * kPitch + across + piece * kTaps);
#pragma unroll
          for (int r = 0; r < kRows; ++r)
            if (0 <= row - r && row - r < TALL) {
              float taps[4 * kVectors];
              read<kVectors>(taps, weights + ((i * TALL + row - r) * kPieces + piece) * 4 * kVectors);
#pragma unroll
              for (int c = 0; c < kTaps; ++c)
#pragma unroll
                for (int o = 0; o < kOut; ++o)
#pragma unroll
                  for (int v = 0; v < 4; ++v) sums[r][o][v] += pixels[kShift + c + v] * taps[c * kOut + o];
            }
        }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
      int row = top + down + r, column = left + across;
      if (row >= H || first + o >= OUT) continue;
      float* to = y + ((long long)(picture * OUT + first + o) * H + row) * W + column;
      float (&sum)[4] = sums[r][o];
      if (RECTIFIED)
#pragma unroll
        for (int v = 0; v < 4; ++v) sum[v] = sum[v] < 0 ? 0 : sum[v];  // keeps NaN
      if (W % 4 == 0) {
        if (column < W) __stcg(reinterpret_cast<float4*>(to), float4{sum[0], sum[1], sum[2], sum[3]});  // at once
      } else {
#pragma unroll
        for (int v = 0; v < 4; ++v)
          if (column + v < W) to[v] = sum[v];
      }
    }
}

#if FORWARD

// x [P, N, I, H, W], kernel [P, TALL, WIDE, I, O], bias [P, O], y [P, N, O, H, W].
extern "C" __global__ void __launch_bounds__(kThreads, kResident)
    forward(const float* x, const float* kernel, const float* bias, float* y) {
  convolve<I, O, false, false, RELU>(x, nullptr, kernel, bias, y, blockIdx.x);
}

#else

// The gradient of the kernel, dk[a, c, i, o] = sum over pixels of x[y + a, x + c, i] * g[y, x, o], and that of the
// bias, over SPAN tiles of one member: part[member, span] holds TALL x WIDE x I x O sums and, behind them, O. One of the
// two stays, the other moves by a tap: as it is read for every tap, TURN says that it is the one with few channels, g.
template <bool TURN>
__device__ void gradient(const float* x, const float* g, const float* gate, float* part, int block) {
  constexpr int kMoving = TURN ? O : I, kStaying = TURN ? I : O;
  constexpr int kTiles = ceil_div(kStaying, 5), kStay = ceil_div(kStaying, kTiles);             // channels at a time
  constexpr int kSeen = HIGH + TALL, kSteps = ceil_div(H, HIGH), kAll = N * kSteps * kColumns;  // kSeen: no bank twice
  constexpr int kPairs = SLICE * TALL * kPieces, kTeams = kThreads / kPairs;  // tasks; threads that share one
  constexpr int kSpans = ceil_div(kAll, SPAN), kSlices = ceil_div(kMoving, SLICE), kSize = TALL * WIDE * I * O;
  constexpr int kTotals = TURN ? SLICE : kStay;
  int span = block % kSpans, slice = block / kSpans % kSlices * SLICE;
  int first = block / (kSpans * kSlices) % kTiles * kStay, member = block / (kSpans * kSlices * kTiles);
  int depth = at_most(SLICE, kMoving - slice), width = at_most(kStay, kStaying - first);
  float* moves = reinterpret_cast<float*>(memory);
  float* stays = moves + SLICE * kSeen * kPitch;
  int pair = threadIdx.x % kPairs, team = threadIdx.x / kPairs;
  int m = pair / (TALL * kPieces), a = pair / kPieces % TALL, piece = pair % kPieces;

  float sums[kTaps][kStay] = {}, totals[kTotals] = {};
  for (int n = span * SPAN; n < at_most(kAll, (span + 1) * SPAN); ++n) {
    int left = n % kColumns * kWide, top = n / kColumns % kSteps * HIGH, picture = member * N + n / (kColumns * kSteps);
    long long move = (long long)(picture * kMoving + slice) * H * W;
    long long stay = (long long)(picture * kStaying + first) * H * W;
    __syncthreads();  // until the last tile is done with
    stage<RELU && TURN, SLICE, kSeen, kPitch>(moves, (TURN ? g : x) + move, gate + move, depth, top - TALL / 2,
                                              left - kRim);
    stage<RELU && !TURN, kStay, HIGH, kWide>(stays, (TURN ? x : g) + stay, gate + stay, width, top, left);
    __syncthreads();
    if (threadIdx.x < HIGH * kAcross)
#pragma unroll
      for (int t = 0; t < kTotals; ++t) {
        int row = threadIdx.x / kAcross, column = threadIdx.x % kAcross * 4;
        float four[4];
        read<1>(four, TURN ? moves + (t * kSeen + TALL / 2 + row) * kPitch + kRim + column
                           : stays + (t * HIGH + row) * kWide + column);
        totals[t] += (four[0] + four[1]) + (four[2] + four[3]);
      }
    if (team < kTeams && m < depth)
      for (int q = team; q < HIGH * kAcross / 2; q += kTeams) {  // eight pixels
        int row = q / (kAcross / 2), column = q % (kAcross / 2) * 8;
        float pixels[4 * kWindow + 4];
        read<kWindow + 1>(pixels, moves + (m * kSeen + row + a) * kPitch + column + piece * kTaps);
#pragma unroll
        for (int s = 0; s < kStay; ++s) {
          float eight[8];
          read<2>(eight, stays + (s * HIGH + row) * kWide + column);
#pragma unroll
          for (int c = 0; c < kTaps; ++c)
#pragma unroll
            for (int v = 0; v < 8; ++v) sums[c][s] += pixels[kShift + c + v] * eight[v];
        }
      }
  }
  __syncthreads();  // the tiles make room for what the threads found
  part += (long long)(member * kSpans + span) * (kSize + O);
  float* found = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int n = 0; n < kTaps * kStay; ++n) found[n * kThreads + threadIdx.x] = sums[n / kStay][n % kStay];
  __syncthreads();
  for (int n = threadIdx.x; n < depth * TALL * kPieces * kTaps * kStay; n += kThreads) {
    int task = n / (kTaps * kStay), c = task % kPieces * kTaps + n % (kTaps * kStay) / kStay, s = n % kStay;
    float sum = 0;
    for (int t = 0; t < kTeams; ++t) sum += found[n % (kTaps * kStay) * kThreads + t * kPairs + task];
    int moved = slice + task / (TALL * kPieces), tap = task / kPieces % TALL * WIDE + c;
    int at = TURN ? ((TALL * WIDE - 1 - tap) * I + first + s) * O + moved : (tap * I + moved) * O + first + s;
    if (c < WIDE && s < width) part[at] = sum;
  }
  if (TURN ? first : slice) return;  // the others tell the gradient of the bias
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kTotals; ++t) found[t * kThreads + threadIdx.x] = totals[t];
  int lines = kTotals * kThreads / 8;  // of eight numbers, then of sixteen of their sums
  float sum = 0;
  __syncthreads();
  for (int n = 0; n < 8 && threadIdx.x < lines; ++n) sum += found[8 * threadIdx.x + n];
  __syncthreads();
  if (threadIdx.x < lines) found[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < (TURN ? depth : width)) {
    sum = 0;
    for (int n = 0; n < kThreads / 8; ++n) sum += found[threadIdx.x * kThreads / 8 + n];
    part[kSize + (TURN ? slice : first) + threadIdx.x] = sum;
  }
}

// The gradients of kernel and bias in parts and, if BACK is not 0, that of x, from that of y, g. Each member has BACK
// blocks for the one and FOUND for the other: side by side they read the same.
extern "C" __global__ void __launch_bounds__(kThreads, kResident)
    backward(const float* x, const float* kernel, const float* y, const float* g, float* part, float* dx) {
  int member = blockIdx.x / (BACK + FOUND), rest = blockIdx.x % (BACK + FOUND);
  if constexpr (BACK > 0)
    if (rest < BACK) return convolve<O, I, RELU, true, false>(g, y, kernel, nullptr, dx, member * BACK + rest);
  gradient<SWAP>(x, g, y, part, member * FOUND + rest - BACK);
}

#endif

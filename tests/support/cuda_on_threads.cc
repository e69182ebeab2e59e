// Runs the kernels of `_kernels.cu` on the CPU, a thread of the system for each of a block's, so that their sums can be
// tested where there is no GPU. Compiled with KERNELS, the path of that source, and the constants of a launch.

#include <barrier>
#include <cmath>
#include <thread>
#include <vector>

#define __device__ inline
#define __global__
#define __shared__
#define __launch_bounds__(threads, blocks)

struct float4 {
  float x, y, z, w;
} __attribute__((aligned(16)));

struct Index {
  int x;
};

alignas(16) float4 memory[SHARED / 4 + 1];
thread_local Index threadIdx;
Index blockIdx;
std::barrier together(128);

void __stcg(float4* to, float4 value) { *to = value; }
void __syncthreads() { together.arrive_and_wait(); }

#include KERNELS

extern "C" void run(int blocks, float** arrays) {
  std::vector<std::thread> threads;
  for (int n = 0; n < 128; ++n)
    threads.emplace_back([=] {
      threadIdx.x = n;
      for (int block = 0; block < blocks; ++block) {
        if (n == 0) {
          blockIdx.x = block;
          for (float4& four : memory) four = {NAN, NAN, NAN, NAN};
        }
        together.arrive_and_wait();
        CALL;
        together.arrive_and_wait();
      }
    });
  for (auto& thread : threads) thread.join();
}

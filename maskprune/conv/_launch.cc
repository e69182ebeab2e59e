// Starts a CUDA kernel from within compiled JAX code: the one XLA custom call behind `cuda.py`.
//
// Everything that is particular to a kernel comes with the call: its machine code, its name and how many blocks of
// threads it has; its arguments are the call's arrays. The driver is opened when the first kernel is wanted, so this
// compiles, and loads, where there is no CUDA.

#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// The parts of the driver's interface that are used, as its documentation gives them; 0 is success.
struct Driver {
  int (*cuLibraryLoadData)(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned);
  int (*cuLibraryGetKernel)(void** kernel, void* library, const char* name);
  int (*cuLaunchKernel)(void* kernel, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared,
                        void* stream, void** arguments, void** extra);
  int (*cuThreadExchangeStreamCaptureMode)(int* mode);
  bool found;

  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    auto find = [library](auto& function, const char* name) {
      function = library ? reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name)) : nullptr;
      return function != nullptr;
    };
    found = find(cuLibraryLoadData, "cuLibraryLoadData") & find(cuLibraryGetKernel, "cuLibraryGetKernel") &
            find(cuLaunchKernel, "cuLaunchKernel") &
            find(cuThreadExchangeStreamCaptureMode, "cuThreadExchangeStreamCaptureMode");
  }
};

const Driver& driver() {
  static const Driver only;
  return only;
}

// The kernel of that name in the machine code whose digest is `key`; loaded once, for all devices.
int find_kernel(int64_t key, std::string_view code, const std::string& name, void** kernel) {
  static std::mutex mutex;
  static std::map<int64_t, void*> kernels;
  std::lock_guard<std::mutex> lock(mutex);
  void*& known = kernels[key];
  int failed = 0;
  if (!known) {
    // XLA may be recording a graph in this thread: loading code is no part of that.
    int mode = 2;  // relaxed
    driver().cuThreadExchangeStreamCaptureMode(&mode);
    void* library = nullptr;
    failed = driver().cuLibraryLoadData(&library, code.data(), nullptr, nullptr, 0, nullptr, nullptr, 0);
    if (!failed) failed = driver().cuLibraryGetKernel(&known, library, name.c_str());
    driver().cuThreadExchangeStreamCaptureMode(&mode);
  }
  *kernel = known;
  return failed;
}

ffi::Error Launch(void* stream, ffi::RemainingArgs given, ffi::RemainingRets made, std::string_view code, int64_t key,
                  std::string_view name, int64_t blocks, int64_t threads, int64_t shared) {
  if (!driver().found) return ffi::Error::Internal("maskprune: this CUDA driver is older than 12.0, or there is none");
  void* kernel = nullptr;
  if (int failed = find_kernel(key, code, std::string(name), &kernel))
    return ffi::Error::Internal("maskprune: the CUDA driver does not load a kernel, error " + std::to_string(failed));
  std::vector<void*> arrays;
  for (size_t n = 0; n < given.size(); ++n) arrays.push_back(given.get<ffi::AnyBuffer>(n)->untyped_data());
  for (size_t n = 0; n < made.size(); ++n) arrays.push_back((*made.get<ffi::AnyBuffer>(n))->untyped_data());
  std::vector<void*> arguments;
  for (void*& array : arrays) arguments.push_back(&array);
  int failed = driver().cuLaunchKernel(kernel, blocks, 1, 1, threads, 1, 1, shared, stream, arguments.data(), nullptr);
  if (failed) return ffi::Error::Internal("maskprune: a CUDA kernel did not start, error " + std::to_string(failed));
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(maskprune_launch, Launch,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<void*>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("code")
                                  .Attr<int64_t>("key")
                                  .Attr<std::string_view>("name")
                                  .Attr<int64_t>("blocks")
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("shared"),
                              {ffi::Traits::kCmdBufferCompatible});

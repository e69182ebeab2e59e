/* A disk that fails on demand: loaded before the C library, it lets the n-th call that changes something below a folder
   fail with a given error. Counts such calls. Linux only. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static atomic_long calls, at = -1;
static atomic_int error, lasting;

/* Watches a folder from now on: call number `when` (from 0) fails, with `lasting` all later ones, too. */
void fail_below(const char *path, long when, int code, int for_good) {
  at = -1;
  snprintf(folder, sizeof folder, "%s", path);
  error = code, lasting = for_good, calls = 0;
  at = when;
}

long count_calls(void) { return calls; }

/* The same for a whole program: FAIL_BELOW, FAIL_AT, FAIL_WITH and FAIL_LASTING say it in its environment. */
__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAIL_BELOW");
  if (path) fail_below(path, atol(getenv("FAIL_AT")), atoi(getenv("FAIL_WITH")), atoi(getenv("FAIL_LASTING")));
}

static int hit(void) {
  long number = atomic_fetch_add(&calls, 1);
  if (at < 0 || !(number == at || (lasting && number > at))) return 0;
  errno = error;
  return 1;
}

static int fails_path(const char *path) {
  size_t length = strlen(folder);
  return length && path && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]) && hit();
}

static int fails_handle(int handle) {
  char link[64], path[4096];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails_path(path);
}

static int fails_at(int base, const char *path) {
  return path && path[0] == '/' ? fails_path(path) : base != AT_FDCWD && fails_handle(base);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CHANGES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))
#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *path, int flags, ...) { MODE(flags) return CHANGES(flags) && fails_path(path) ? -1 : REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return CHANGES(flags) && fails_path(path) ? -1 : REAL(open64)(path, flags, mode); }
int openat(int base, const char *path, int flags, ...) { MODE(flags) return CHANGES(flags) && fails_at(base, path) ? -1 : REAL(openat)(base, path, flags, mode); }
int openat64(int base, const char *path, int flags, ...) { MODE(flags) return CHANGES(flags) && fails_at(base, path) ? -1 : REAL(openat64)(base, path, flags, mode); }
ssize_t write(int handle, const void *data, size_t count) { return fails_handle(handle) ? -1 : REAL(write)(handle, data, count); }
ssize_t pwrite(int handle, const void *data, size_t count, off_t offset) { return fails_handle(handle) ? -1 : REAL(pwrite)(handle, data, count, offset); }
ssize_t pwrite64(int handle, const void *data, size_t count, off64_t offset) { return fails_handle(handle) ? -1 : REAL(pwrite64)(handle, data, count, offset); }
ssize_t writev(int handle, const struct iovec *data, int count) { return fails_handle(handle) ? -1 : REAL(writev)(handle, data, count); }
int fsync(int handle) { return fails_handle(handle) ? -1 : REAL(fsync)(handle); }
int fdatasync(int handle) { return fails_handle(handle) ? -1 : REAL(fdatasync)(handle); }
int ftruncate(int handle, off_t size) { return fails_handle(handle) ? -1 : REAL(ftruncate)(handle, size); }
int ftruncate64(int handle, off64_t size) { return fails_handle(handle) ? -1 : REAL(ftruncate64)(handle, size); }
int rename(const char *from, const char *to) { return fails_path(to) ? -1 : REAL(rename)(from, to); }
int renameat(int base, const char *from, int other, const char *to) { return fails_at(other, to) ? -1 : REAL(renameat)(base, from, other, to); }
int renameat2(int base, const char *from, int other, const char *to, unsigned flags) { return fails_at(other, to) ? -1 : REAL(renameat2)(base, from, other, to, flags); }
int mkdir(const char *path, mode_t mode) { return fails_path(path) ? -1 : REAL(mkdir)(path, mode); }
int mkdirat(int base, const char *path, mode_t mode) { return fails_at(base, path) ? -1 : REAL(mkdirat)(base, path, mode); }
int unlink(const char *path) { return fails_path(path) ? -1 : REAL(unlink)(path); }
int unlinkat(int base, const char *path, int flags) { return fails_at(base, path) ? -1 : REAL(unlinkat)(base, path, flags); }
int rmdir(const char *path) { return fails_path(path) ? -1 : REAL(rmdir)(path); }

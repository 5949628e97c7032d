/* A storage that fails: preloaded, every call on a path below $ILL_STORAGE fails with the errno that the file
   $ILL_STORAGE_SAYS holds, a number; while that file is empty all is well. After "late N" a link is made and fails. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int real_open(const char *path, int flags, mode_t mode) {
  int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
  return next(path, flags, mode);
}

static int says(const char *path, int *late) {
  const char *folder = getenv("ILL_STORAGE"), *file = getenv("ILL_STORAGE_SAYS");
  char text[32] = "";
  int code = 0, descriptor;
  *late = 0;
  if (!folder || !file || !path || strncmp(path, folder, strlen(folder))) return 0;
  if ((descriptor = real_open(file, O_RDONLY, 0)) >= 0) {
    if (read(descriptor, text, sizeof text - 1) > 0) {
      *late = !strncmp(text, "late ", 5);
      code = atoi(text + (*late ? 5 : 0));
    }
    close(descriptor);
  }
  return code;
}

#define FAILS(path, bad) \
  int late, code = says(path, &late); \
  if (code && !late) { errno = code; return bad; }

int open64(const char *path, int flags, ...) {
  va_list rest;
  FAILS(path, -1)
  va_start(rest, flags);
  mode_t mode = va_arg(rest, mode_t);
  va_end(rest);
  return real_open(path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = va_arg(rest, mode_t);
  va_end(rest);
  return open64(path, flags, mode);
}

DIR *opendir(const char *path) {
  FAILS(path, NULL)
  DIR *(*next)(const char *) = dlsym(RTLD_NEXT, "opendir");
  return next(path);
}

int link(const char *old, const char *new) {
  FAILS(old, -1)
  int (*next)(const char *, const char *) = dlsym(RTLD_NEXT, "link");
  int done = next(old, new);
  if (code && !done) { errno = code; return -1; }
  return done;
}

int mkdir(const char *path, mode_t mode) {
  FAILS(path, -1)
  int (*next)(const char *, mode_t) = dlsym(RTLD_NEXT, "mkdir");
  return next(path, mode);
}

/* A disk that fails, loaded before the C library of a worker. It looks at what is done to the files of a store, and can

   - end the process at an operation: before it, when a write is half done, or behind it;
   - keep a second directory as the disk would be after a loss of power: what was written and not synced is not there;
   - refuse operations with an error.

   Environment:

   DISK_STORE   the store's file, absolute; the names that begin so are its log and its journal
   DISK_AT      the operation that ends the process, from 1; 0: none does
   DISK_HOW     "before", "half" or "after"; both can be said later too, with disk_end
   DISK_SHADOW  the second directory; it has to be a copy of the first one when the process starts
   DISK_ERRORS  a file of three ints, which others may change: errno for writes, for syncs and for reads; 0: they succeed

   One thread at a time. What is synced reaches the shadow, not the real disk: the machine goes on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define BLOCK 4096
#define BLOCKS 65536 /* 256 MB: more than a store of the tests has */

enum { WRITES, SYNCS, READS };

struct file {
    char path[PATH_MAX];
    unsigned char dirty[BLOCKS]; /* written since it was synced last */
    int fresh;                   /* it was made anew: what the shadow has is of a file that is gone */
};

static struct file *files[8];
static const char *store, *shadow, *how;
static char directory[PATH_MAX];
static size_t store_length;
static long at, count;
static volatile int *errors;

static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pread)(int, void *, size_t, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_unlink)(const char *);

__attribute__((constructor)) static void begin(void)
{
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pread = dlsym(RTLD_NEXT, "pread");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    store = getenv("DISK_STORE");
    shadow = getenv("DISK_SHADOW");
    how = getenv("DISK_HOW");
    at = getenv("DISK_AT") ? atol(getenv("DISK_AT")) : 0;
    if (!store)
        return;
    store_length = strlen(store);
    snprintf(directory, sizeof directory, "%.*s", (int)(strrchr(store, '/') - store), store);
    if (getenv("DISK_ERRORS")) {
        int fd = open(getenv("DISK_ERRORS"), O_RDWR | O_CLOEXEC);
        void *page = fd < 0 ? MAP_FAILED : mmap(NULL, 3 * sizeof(int), PROT_READ, MAP_SHARED, fd, 0);
        if (page == MAP_FAILED)
            abort();
        errors = page;
        close(fd);
    }
}

/* The so-manieth operation from here on ends the process. */
void disk_end(long operation, const char *where)
{
    at = operation;
    how = where;
    count = 0;
}

/* Whether a descriptor is of the store, or of its directory; and its path. */
static int is_ours(int fd, char *path)
{
    char link[64];
    ssize_t length;
    int saved = errno;
    if (!store)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (length < 0)
        return 0;
    path[length] = 0;
    return !strncmp(path, store, store_length) || !strcmp(path, directory);
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* An operation begins: whether the process is to end with it. */
static int is_last(void)
{
    int last = at && ++count == at;
    if (last && !strcmp(how, "before"))
        die();
    return last;
}

static int refused(int kind)
{
    int error = errors ? errors[kind] : 0;
    if (error)
        errno = error;
    return error;
}

/* -- the shadow */

static int is_shadowed(const char *path)
{
    size_t length = strlen(path);
    return shadow && strcmp(path, directory) && (length < 4 || strcmp(path + length - 4, "-shm"));
}

static struct file *known(const char *path)
{
    for (int i = 0; i < 8; i++) {
        if (!files[i]) {
            files[i] = calloc(1, sizeof **files);
            strcpy(files[i]->path, path);
        }
        if (!strcmp(files[i]->path, path))
            return files[i];
    }
    abort();
}

static void copied_path(const char *path, char *copy)
{
    snprintf(copy, PATH_MAX, "%s%s", shadow, strrchr(path, '/'));
}

static void changed(const char *path, off_t from, off_t to)
{
    if (!is_shadowed(path))
        return;
    struct file *file = known(path);
    if (to > (off_t)BLOCKS * BLOCK)
        abort();
    for (off_t block = from / BLOCK; block * BLOCK < to; block++)
        file->dirty[block] = 1;
}

static void file_synced(int fd, const char *path)
{
    struct file *file = known(path);
    struct stat now;
    char copy[PATH_MAX], data[BLOCK];
    copied_path(path, copy);
    int to = open(copy, O_RDWR | O_CREAT | O_CLOEXEC | (file->fresh ? O_TRUNC : 0), 0600);
    if (to < 0 || fstat(fd, &now) || real_ftruncate(to, now.st_size))
        abort();
    file->fresh = 0;
    for (off_t block = 0; block * BLOCK < now.st_size; block++) {
        if (!file->dirty[block])
            continue;
        ssize_t got = real_pread(fd, data, BLOCK, block * BLOCK);
        if (got < 0 || real_pwrite(to, data, got, block * BLOCK) != got)
            abort();
    }
    memset(file->dirty, 0, sizeof file->dirty);
    close(to);
}

/* The names in the directory are as they are now. */
static void directory_synced(void)
{
    char copy[PATH_MAX];
    for (int i = 0; i < 8 && files[i]; i++) {
        copied_path(files[i]->path, copy);
        if (access(files[i]->path, F_OK))
            real_unlink(copy);
        else if (files[i]->fresh || access(copy, F_OK))
            close(open(copy, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
        files[i]->fresh = 0;
    }
}

/* -- what takes the place of the C library's */

static ssize_t do_pwrite(int fd, const void *data, size_t size, off_t offset)
{
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return real_pwrite(fd, data, size, offset);
    if (refused(WRITES))
        return -1;
    int last = is_last();
    ssize_t done = real_pwrite(fd, data, last && !strcmp(how, "half") ? size / 2 : size, offset);
    if (last)
        die();
    if (done > 0)
        changed(path, offset, offset + done);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return do_pwrite(fd, data, size, offset); }

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return do_pwrite(fd, data, size, offset); }

ssize_t write(int fd, const void *data, size_t size)
{
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return real_write(fd, data, size);
    return do_pwrite(fd, data, size, lseek(fd, 0, SEEK_CUR)); /* SQLite looks at no position that it has not set */
}

static ssize_t do_pread(int fd, void *data, size_t size, off_t offset)
{
    char path[PATH_MAX];
    if (errors && errors[READS] && is_ours(fd, path) && refused(READS))
        return -1;
    return real_pread(fd, data, size, offset);
}

ssize_t pread(int fd, void *data, size_t size, off_t offset) { return do_pread(fd, data, size, offset); }

ssize_t pread64(int fd, void *data, size_t size, off_t offset) { return do_pread(fd, data, size, offset); }

static int do_ftruncate(int fd, off_t size)
{
    char path[PATH_MAX];
    struct stat before;
    if (!is_ours(fd, path))
        return real_ftruncate(fd, size);
    if (refused(WRITES))
        return -1;
    int last = is_last(), done = fstat(fd, &before) ? -1 : real_ftruncate(fd, size);
    if (last)
        die();
    if (!done)
        changed(path, size < before.st_size ? size : before.st_size, size < before.st_size ? before.st_size : size);
    return done;
}

int ftruncate(int fd, off_t size) { return do_ftruncate(fd, size); }

int ftruncate64(int fd, off_t size) { return do_ftruncate(fd, size); }

static int do_sync(int fd, const char *name)
{
    char path[PATH_MAX];
    if (!is_ours(fd, path)) {
        int (*real)(int) = dlsym(RTLD_NEXT, name);
        return real(fd);
    }
    if (refused(SYNCS))
        return -1;
    int last = is_last();
    if (is_shadowed(path))
        file_synced(fd, path);
    else if (shadow && !strcmp(path, directory))
        directory_synced();
    if (last)
        die();
    return 0;
}

int fsync(int fd) { return do_sync(fd, "fsync"); }

int fdatasync(int fd) { return do_sync(fd, "fdatasync"); }

int unlink(const char *path)
{
    if (!store || strncmp(path, store, store_length))
        return real_unlink(path);
    int last = is_last(), done = real_unlink(path);
    if (last)
        die();
    if (!done && is_shadowed(path)) {
        struct file *file = known(path);
        memset(file->dirty, 0, sizeof file->dirty);
        file->fresh = 1;
    }
    return done;
}

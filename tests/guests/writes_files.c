/* Tells what it finds in /tmp, keeps a file there, fills it until there is no more room, and tries to leave it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int entries(void) {
    DIR *directory = opendir("/tmp");
    int count = 0;
    if (!directory) return -1;
    for (struct dirent *entry; (entry = readdir(directory));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) count++;
    closedir(directory);
    return count;
}

static int opens(const char *path) {
    int file = open(path, O_RDONLY);
    if (file >= 0) close(file);
    return file >= 0;
}

static int keeps(void) {
    char found[8] = {0};
    if (mkdir("/tmp/d", 0700)) return 0;
    int file = open("/tmp/d/a", O_RDWR | O_CREAT, 0600);
    int kept = file >= 0 && write(file, "hello", 5) == 5 && lseek(file, 0, SEEK_SET) == 0 && read(file, found, 5) == 5;
    return kept && !close(file) && !strcmp(found, "hello");
}

static long fills(int *error) {
    static char block[4096];
    long written = 0;
    int file = open("/tmp/large", O_WRONLY | O_CREAT, 0600);
    for (ssize_t some; file >= 0 && (some = write(file, block, sizeof block)) > 0;) written += some;
    *error = errno;
    return written;
}

int main(void) {
    int found = entries(), error = 0;
    int kept = found < 0 ? 0 : keeps();
    long written = found < 0 ? 0 : fills(&error);
    int linked = !symlink("/etc", "/tmp/elsewhere") || !symlink("../../../../etc", "/tmp/elsewhere");
    int left = opens("/etc/passwd") || opens("/tmp/../etc/passwd") || opens("/tmp/elsewhere/passwd");
    printf("{\"found\":%d,\"kept\":%d,\"written\":%ld,\"full\":%d,\"linked\":%d,\"left\":%d}\n", found, kept, written,
           error == ENOSPC, linked, left);
    return 0;
}

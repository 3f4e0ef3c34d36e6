// Linked into a C++ program whose tests decide by themselves (ld --wrap=main): reads the word that reports a pass before
// main, and sends it to the host after main has returned 0.
#include <unistd.h>

extern "C" int __real_main(int, char **, char **);

extern "C" int __wrap_main(int argc, char **argv, char **environment)
{
    char word[64];
    long length = read(201, word, sizeof word);
    int code = __real_main(argc, argv, environment);
    if (code == 0 && write(200, word, length) != length)
        return 1;
    return code;
}

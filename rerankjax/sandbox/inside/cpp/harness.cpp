// Linked into a C++ program whose tests decide: what tell.h declares.
#include "tell.h"
#include <unistd.h>

namespace rerankjax {

void put(std::string &to, long value) { to += "i" + std::to_string(value); }
void put(std::string &to, unsigned long value) { to += "i" + std::to_string(value); }

void put(std::string &to, double value)
{
    char text[64];
    std::snprintf(text, sizeof text, "f%.17g", value);
    to += text;
}

void put(std::string &to, std::string_view value)
{
    to += 's';
    for (unsigned char letter : value) {
        to += "0123456789abcdef"[letter >> 4];
        to += "0123456789abcdef"[letter & 15];
    }
}

void send(std::string text)
{
    text += '\0';
    long sent = 0, got;
    for (std::size_t at = 0; at < text.size() && sent >= 0; at += sent)
        sent = ::write(200, text.data() + at, text.size() - at);
    char right;
    got = ::read(201, &right, 1);
    if (got != 1) {
        std::fputs("Assertion failed: a test expects another value\n", stderr);
        std::abort();
    }
}

} // namespace rerankjax

// rerankjax::tell(value) sends the host a value that a test checks, and waits until the host finds it correct.
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

namespace rerankjax {

void send(std::string text); // harness.cpp

template <class T, class = void> struct has_items : std::false_type {};
template <class T>
struct has_items<T, std::void_t<decltype(std::begin(std::declval<T &>())), decltype(std::end(std::declval<T &>()))>>
    : std::true_type {};
template <class T, class = void> struct is_map : std::false_type {};
template <class T> struct is_map<T, std::void_t<typename T::mapped_type>> : std::true_type {};
template <class T, class = void> struct is_tuple : std::false_type {};
template <class T> struct is_tuple<T, std::void_t<decltype(std::tuple_size<T>::value)>> : std::true_type {};
template <class T> struct is_optional : std::false_type {};
template <class T> struct is_optional<std::optional<T>> : std::true_type {};

void put(std::string &to, long value);
void put(std::string &to, unsigned long value);
void put(std::string &to, double value);
void put(std::string &to, std::string_view value);

template <class T> void write(std::string &to, const T &value)
{
    if constexpr (std::is_same_v<T, bool>)
        to += value ? "b1" : "b0";
    else if constexpr (std::is_integral_v<T> && std::is_signed_v<T>)
        put(to, (long) value);
    else if constexpr (std::is_integral_v<T>)
        put(to, (unsigned long) value);
    else if constexpr (std::is_floating_point_v<T>)
        put(to, (double) value);
    else if constexpr (std::is_convertible_v<const T &, std::string_view>)
        put(to, std::string_view(value));
    else if constexpr (std::is_same_v<T, std::nullopt_t>)
        to += "n";
    else if constexpr (is_optional<T>::value)
        value ? write(to, *value) : (void) (to += "n");
    else if constexpr (has_items<const T>::value) {
        to += is_map<T>::value ? '{' : '[';
        bool first = true;
        for (auto &&item : value) {
            if (!first)
                to += ',';
            first = false;
            if constexpr (is_map<T>::value) {
                write(to, item.first);
                to += ':';
                write(to, item.second);
            } else
                write(to, item);
        }
        to += is_map<T>::value ? '}' : ']';
    } else if constexpr (is_tuple<T>::value) {
        to += '(';
        std::apply([&](const auto &...items) {
            int at = 0;
            ((to += at++ ? "," : "", write(to, items)), ...);
        }, value);
        to += ')';
    } else
        to += '?';
}

template <class T> void tell(const T &value)
{
    std::string text;
    write(text, value);
    send(std::move(text));
}

} // namespace rerankjax

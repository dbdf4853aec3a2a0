// A visitor of a std::variant written as lambdas.
#pragma once

namespace pollux::protocol {

template <class... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};

}  // namespace pollux::protocol

#include "chaos/kv_model.h"

namespace pollux::chaos {

Step carry_out(const KeyState& state, const Operation& operation) {
  switch (operation.kind) {
    case OperationKind::kPut: return {operation.argument, {}};
    case OperationKind::kGet: return {state, state ? Answer{Outcome::kOk, *state} : Answer{Outcome::kMissing, {}}};
    case OperationKind::kIncrement: break;
  }
  const std::optional<std::uint64_t> number = state ? decode_number(*state) : 0;  // created as 0
  if (!number) return {state, {Outcome::kRefused, {}}};
  const std::string next = encode_number(*number + 1);
  return {next, {Outcome::kOk, next}};
}

}  // namespace pollux::chaos

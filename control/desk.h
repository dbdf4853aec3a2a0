// Where an operator's requests meet the replica that runs in this process right now: a process may be a backup first, a
// primary later, and a backup again.
#pragma once

#include <shared_mutex>
#include <string>

#include "control/request.h"
#include "control/status.h"

namespace pollux::control {

// A replica that takes orders. Functions are called by several threads at once, none of which a guest ever waits for.
class Controllable {
 public:
  virtual ~Controllable() = default;
  // At any time, also before the machine runs and after its end.
  [[nodiscard]] virtual Status status() = 0;
  // A JSON object on one line.
  [[nodiscard]] virtual std::string statistics() = 0;
  // Everything but status and statistics: does it and says what was done, in bounded time. Throws Error when it was not
  // done.
  [[nodiscard]] virtual std::string carry_out(const Request& request) = 0;
};

// Thread safe.
class Desk {
 public:
  // As long as it lives, requests go to this replica; its end waits for those under way. One at a time.
  class Use {
   public:
    Use(Desk& desk, Controllable& replica) : desk_(desk) { desk_.set(&replica); }
    ~Use() { desk_.set(nullptr); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    Desk& desk_;
  };

  // The answer, one line without its newline. Never throws an Error: that is an answer too.
  [[nodiscard]] std::string answer(const Request& request);
  // What a watcher must be told at once when it changes; the rest every second.
  // Between two roles there is a status, too: whoever watches sees a failover from beginning to end.
  [[nodiscard]] Status watched();
  [[nodiscard]] bool between_roles();

 private:
  void set(Controllable* replica);

  std::shared_mutex mutex_;
  Controllable* replica_ = nullptr;
};

}  // namespace pollux::control

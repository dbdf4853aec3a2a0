// What must hold after every step, judged from outside: by what hosts hold and release, not by what they say.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "event_queue.h"
#include "guest_model.h"
#include "protocol/message.h"
#include "protocol/types.h"

namespace pollux::sim {

class BackupHost;
class Host;
class PrimaryHost;
class World;

class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Checker {
 public:
  explicit Checker(World& world) : world_(world) {}

  // Outputs reach the client.
  void released(const Host& host, const Outputs& outputs);
  // The primary counts a backup as gone, or tells it so.
  void given_up(const PrimaryHost& primary, std::size_t backup);
  // The primary left because another replica leads.
  void superseded(const PrimaryHost& primary, std::size_t backup);
  void claims(const BackupHost& backup, protocol::Term term);
  void promoted(const BackupHost& backup, protocol::EpochId epoch, protocol::Term term);
  // The image it goes on from is the state at the end of that epoch, which is returned.
  GuestState image_at_promotion(const BackupHost& backup, protocol::EpochId epoch, GuestState pages,
                                GuestState state);
  // A replica counts another as lost, or ends, because of this message of it.
  void turned_against(const protocol::Message& message) const;
  // After every step of the world, of each replica.
  void holds(const PrimaryHost& primary);
  void holds(const BackupHost& backup) const;

 private:
  // Of a primary, at the step before.
  struct Reached {
    protocol::Term term;
    protocol::EpochId committed;
  };
  struct Promotion {
    protocol::Term term;
    std::size_t position;
  };

  void require(bool holds, const char* what) const;
  void on_one_line(const Host& host, std::size_t to);
  void committed_by_all(const PrimaryHost& primary, const Outputs& outputs) const;
  void durable_where_promised(const PrimaryHost& primary, const Outputs& outputs) const;

  World& world_;
  std::vector<std::uint64_t> line_;  // the one execution the client has seen: the state after each step
  std::vector<std::size_t> on_line_;  // by HostId: up to where a replica's execution is known to be that one
  std::vector<Promotion> promotions_;
  std::vector<Reached> reached_;  // by HostId
};

}  // namespace pollux::sim

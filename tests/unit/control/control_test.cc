// The control socket from outside: what it answers, and that nothing a client does harms another or the process.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "control/client.h"
#include "control/server.h"

namespace pollux::control {
namespace {

using namespace std::chrono_literals;

// What a wrong request's Error says.
std::string why_refused(std::string_view line) {
  try {
    (void)parse_request(line);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Request, EveryKindRoundTrips) {
  const std::vector<Request> all = {
      {.command = Command::kStatus, .watch = true},
      {.command = Command::kStats},
      {.command = Command::kPause},
      {.command = Command::kResume},
      {.command = Command::kStop},
      {.command = Command::kAddBackup, .address = "b:7700"},
      {.command = Command::kDropBackup, .backup = 2},
      {.command = Command::kSwitchover},
      {.command = Command::kSwitchover, .backup = 0},
  };
  for (const Request& request : all) EXPECT_EQ(parse_request(encode(request)), request) << encode(request);
}

TEST(Request, WhatIsWrongIsNamed) {
  EXPECT_NE(why_refused("").find("not a JSON object"), std::string::npos);
  EXPECT_EQ(why_refused("[1]"), "not a JSON object");
  EXPECT_NE(why_refused("{\"command\":"), "");
  EXPECT_EQ(why_refused("{}"), "command: missing");
  EXPECT_EQ(why_refused("{\"command\": 3}"), "command: expected a string");
  EXPECT_NE(why_refused("{\"command\": \"dance\"}").find("there are status, stats, pause"), std::string::npos);
  EXPECT_EQ(why_refused("{\"command\": \"add-backup\"}"), "address: missing");
  EXPECT_EQ(why_refused("{\"command\": \"drop-backup\"}"), "id: missing");
  EXPECT_EQ(why_refused("{\"command\": \"drop-backup\", \"id\": -1}"), "id: expected a backup's number");
  EXPECT_EQ(why_refused("{\"command\": \"drop-backup\", \"id\": 1.5}"), "id: expected a backup's number");
  EXPECT_EQ(why_refused("{\"command\": \"drop-backup\", \"id\": 4294967296}"), "id: expected a backup's number");
  EXPECT_EQ(why_refused("{\"command\": \"status\", \"watch\": 1}"), "watch: expected true or false");
  EXPECT_NE(why_refused("{\"command\": \"pause\", \"watch\": true}").find("takes no such key"), std::string::npos);
  EXPECT_NE(why_refused(std::string(3000, '[')), "");
}

TEST(Request, GarbageNeverDoesHarm) {
  std::mt19937_64 random(5);
  const std::string good = encode({.command = Command::kAddBackup, .address = "host:1"});
  for (int round = 0; round < 20'000; ++round) {
    std::string line = good;
    for (std::uint64_t flips = 1 + random() % 4; flips > 0; --flips) {
      line[random() % line.size()] = static_cast<char>(random());
    }
    (void)why_refused(line);
  }
}

// A replica of which everything is known.
class FakeReplica final : public Controllable {
 public:
  Status status() override {
    return {.role = "primary", .state = "leading", .vm = "ab", .term = 3, .epoch = epoch, .committed = 9,
            .protection = "protected", .guest = paused ? "paused" : "running",
            .backups = {{.id = 1, .address = "10.0.0.2:7700", .state = "protecting", .acknowledged = 9, .unacknowledged_epochs = 1}}};
  }
  std::string statistics() override { return "{\"epochs\":7}\n"; }
  std::string carry_out(const Request& request) override {
    if (request.command == Command::kPause) {
      paused = true;
      return "paused";
    }
    if (request.command == Command::kStop) {
      stopping.set_value();
      release.get_future().wait();
      return "stopping";
    }
    throw Error("not now");
  }

  std::atomic<std::uint64_t> epoch = 10;
  std::atomic<bool> paused = false;
  std::promise<void> stopping;
  std::promise<void> release;
};

class ControlSocket : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/pollux-control-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    folder_ = path;
    path_ = folder_ + "/socket";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string ask_once(const Request& request) const {
    std::string answer;
    ask(path_, request, [&](const std::string& line) {
      answer = line;
      return false;
    });
    return answer;
  }
  Fd connect() const {
    const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    return Fd(socket);
  }
  // Everything that comes until the other side ends the connection, or the first line.
  static std::string read(const Fd& socket, bool to_the_end) {
    std::string all;
    char byte = 0;
    while (::recv(socket.get(), &byte, 1, 0) == 1) {
      all += byte;
      if (byte == '\n' && !to_the_end) break;
    }
    return all;
  }
  static void write(const Fd& socket, const std::string& bytes) {
    EXPECT_EQ(::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }

  std::string folder_;
  std::string path_;
  Desk desk_;
  FakeReplica replica_;
};

TEST_F(ControlSocket, AnswersWhatTheReplicaSays) {
  const Server server(path_, desk_);
  EXPECT_EQ(ask_once({.command = Command::kStats}),
            R"({"ok":false,"error":"this process is between two roles: ask again"})");
  const Answer nobody = parse_answer(ask_once({.command = Command::kStatus}));
  EXPECT_TRUE(nobody.ok);
  EXPECT_NE(nobody.value.find("between two roles"), std::string::npos) << nobody.value;
  const Desk::Use use(desk_, replica_);
  EXPECT_EQ(ask_once({.command = Command::kStats}), R"({"ok":true,"stats":{"epochs":7}})");
  EXPECT_EQ(ask_once({.command = Command::kPause}), R"({"ok":true,"done":"paused"})");
  EXPECT_EQ(ask_once({.command = Command::kResume}), R"({"ok":false,"error":"not now"})");
  const Answer status = parse_answer(ask_once({.command = Command::kStatus}));
  EXPECT_TRUE(status.ok);
  EXPECT_EQ(status_text(status.value),
            "role        primary, leading\n"
            "vm          ab\n"
            "term        3\n"
            "epoch       10, committed 9\n"
            "protection  protected\n"
            "guest       paused\n"
            "backup 1    10.0.0.2:7700, protecting, acknowledged 9 (1 unacknowledged)\n");
}

TEST_F(ControlSocket, OnlyItsOwnerMayConnectAndTheFileGoesWithTheServer) {
  {
    const Server server(path_, desk_);
    struct stat found {};
    ASSERT_EQ(::stat(path_.c_str(), &found), 0);
    EXPECT_EQ(found.st_mode & 07777, 0600u);
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(ControlSocket, AStaleSocketIsReplacedAndAnythingElseIsNot) {
  {
    Fd left = listen_unix(path_);
  }
  ASSERT_TRUE(std::filesystem::exists(path_));
  const Server server(path_, desk_);
  try {
    const Server second(path_, desk_);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_EQ(std::string(error.what()), path_ + ": in use by another process");
  }
  const std::string file = folder_ + "/file";
  std::ofstream(file) << "mine";
  EXPECT_THROW(Server(file, desk_), UsageError);
  EXPECT_TRUE(std::filesystem::exists(file));
  EXPECT_THROW(Server(std::string(200, 'x'), desk_), UsageError);
  EXPECT_THROW(Server(folder_ + "/missing/socket", desk_), UsageError);
}

TEST_F(ControlSocket, AMalformedRequestIsAnsweredAndTheConnectionGoesOn) {
  const Server server(path_, desk_);
  const Desk::Use use(desk_, replica_);
  const Fd client = connect();
  write(client, "nonsense\n{\"command\":\"stats\"}\n");
  EXPECT_NE(read(client, false).find("not a JSON object"), std::string::npos);
  EXPECT_EQ(read(client, false), "{\"ok\":true,\"stats\":{\"epochs\":7}}\n");
}

TEST_F(ControlSocket, AnEndlessLineEndsTheConnection) {
  const Server server(path_, desk_);
  const Fd client = connect();
  write(client, std::string(kMaxRequestBytes, 'x'));
  EXPECT_EQ(read(client, true), "{\"ok\":false,\"error\":\"the request is longer than 4096 bytes\"}\n");
}

TEST_F(ControlSocket, ThereIsABoundOnClients) {
  const Server server(path_, desk_);
  const Desk::Use use(desk_, replica_);
  std::vector<Fd> mute;
  for (std::size_t i = 0; i < Server::kMaxClients; ++i) mute.push_back(connect());
  const Fd refused = connect();
  EXPECT_EQ(read(refused, true), "{\"ok\":false,\"error\":\"too many clients\"}\n");
  // The place of one that left is free again, as soon as its thread has seen that.
  mute.pop_back();
  for (std::string answer; answer.find("epochs") == std::string::npos;) {
    const Fd next = connect();
    (void)::send(next.get(), "{\"command\":\"stats\"}\n", 20, MSG_NOSIGNAL);
    answer = read(next, false);
  }
}

TEST_F(ControlSocket, OneThatDoesNotReadHoldsUpNobody) {
  const Server server(path_, desk_);
  const Desk::Use use(desk_, replica_);
  const Fd slow = connect();
  // Requests without end, and not one answer taken.
  const std::string many = [] {
    std::string text;
    for (int i = 0; i < 50; ++i) text += "{\"command\":\"status\"}\n";
    return text;
  }();
  while (::send(slow.get(), many.data(), many.size(), MSG_NOSIGNAL | MSG_DONTWAIT) > 0) {
  }
  EXPECT_EQ(ask_once({.command = Command::kPause}), R"({"ok":true,"done":"paused"})");
}

TEST_F(ControlSocket, AWatcherIsToldOfAChangeAndLeavesWhenItWants) {
  const Server server(path_, desk_);
  const Desk::Use use(desk_, replica_);
  std::vector<std::string> told;
  ask(path_, {.command = Command::kStatus, .watch = true}, [&](const std::string& line) {
    told.push_back(line);
    replica_.paused = true;
    return line.find("paused") == std::string::npos;
  });
  EXPECT_NE(told.front().find("running"), std::string::npos);
  EXPECT_NE(told.back().find("paused"), std::string::npos);
}

// As at a failover: a backup, for a moment nobody, then a primary.
TEST_F(ControlSocket, AWatcherStaysFromOneRoleToTheNext) {
  const Server server(path_, desk_);
  std::optional<Desk::Use> use;
  std::vector<std::string> told;
  ask(path_, {.command = Command::kStatus, .watch = true}, [&](const std::string& line) {
    told.push_back(line);
    EXPECT_TRUE(parse_answer(line).ok) << line;
    if (told.size() == 1) use.emplace(desk_, replica_);
    if (told.size() == 2) use.reset();
    return told.size() < 3;
  });
  ASSERT_EQ(told.size(), 3u);
  EXPECT_NE(told[0].find("between two roles"), std::string::npos);
  EXPECT_NE(told[1].find("running"), std::string::npos);
  EXPECT_NE(told[2].find("between two roles"), std::string::npos);
}

TEST_F(ControlSocket, TheEndWaitsForTheAnswerUnderWay) {
  auto server = std::make_unique<Server>(path_, desk_);
  const Desk::Use use(desk_, replica_);
  auto answer = std::async(std::launch::async, [&] { return ask_once({.command = Command::kStop}); });
  replica_.stopping.get_future().wait();
  auto end = std::async(std::launch::async, [&] { server.reset(); });
  replica_.release.set_value();
  EXPECT_EQ(answer.get(), R"({"ok":true,"done":"stopping"})");
  end.get();
}

TEST_F(ControlSocket, NobodyThereIsAnError) {
  EXPECT_THROW((void)ask_once({.command = Command::kStatus}), Error);
}

}  // namespace
}  // namespace pollux::control

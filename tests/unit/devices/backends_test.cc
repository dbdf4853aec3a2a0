// The host's side: disk images, TAP names and addresses, consoles.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <gtest/gtest.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/fd.h"
#include "vmm/block/image.h"
#include "vmm/devices/console_port.h"
#include "vmm/devices/terminal.h"
#include "vmm/net/tap.h"

namespace pollux::vmm {
namespace {

namespace fs = std::filesystem;

class BackendsTest : public ::testing::Test {
 protected:
  BackendsTest() {
    std::string name = fs::temp_directory_path() / "pollux-test-XXXXXX";
    folder_ = ::mkdtemp(name.data());
  }
  ~BackendsTest() override { fs::remove_all(folder_); }

  std::string make_file(const std::string& name, std::uint64_t size) {
    const std::string path = folder_ / name;
    std::ofstream(path).close();
    fs::resize_file(path, size);
    return path;
  }
  static void expect_refused(const std::string& path, const std::string& why, bool read_only = false) {
    try {
      const Image image(path, read_only);
      ADD_FAILURE() << path << " accepted";
    } catch (const UsageError& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find(path), std::string::npos) << what;
      EXPECT_NE(what.find(why), std::string::npos) << what;
    }
  }

  fs::path folder_;
};

// --- Image ---

TEST_F(BackendsTest, ImageReadsWritesDiscards) {
  Image image(make_file("disk", 1 << 20), false);
  EXPECT_EQ(image.size(), 1u << 20);
  const Bytes ones(8192, std::byte{1});
  Bytes read(8192);
  EXPECT_TRUE(image.write(4096, ones));
  EXPECT_TRUE(image.sync());
  EXPECT_TRUE(image.read(4096, read));
  EXPECT_EQ(read, ones);
  EXPECT_TRUE(image.discard(4096 + 512, 4096));  // not aligned to the file system's blocks
  EXPECT_TRUE(image.read(4096, read));
  Bytes expected = ones;
  std::fill_n(expected.begin() + 512, 4096, std::byte{0});
  EXPECT_EQ(read, expected);
  EXPECT_TRUE(image.discard(0, 0));
  EXPECT_EQ(fs::file_size(image.path()), 1u << 20);
}

TEST_F(BackendsTest, ImageRefusesWhatIsNoDisk) {
  expect_refused(folder_ / "missing", "No such file");
  expect_refused(folder_, "not a regular file");
  expect_refused("/dev/null", "not a regular file");
  expect_refused(make_file("empty", 0), "empty");
  expect_refused(make_file("odd", 513), "multiple of 512");
  const std::string fifo = folder_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  expect_refused(fifo, "not a regular file");
}

TEST_F(BackendsTest, ImageIsLockedUnlessReadOnly) {
  const std::string path = make_file("disk", 4096);
  {
    const Image first(path, false);
    expect_refused(path, "in use");
    EXPECT_NO_THROW(Image(path, true));
  }
  EXPECT_NO_THROW(Image(path, false));
}

TEST_F(BackendsTest, ReadOnlyImageIsNotChanged) {
  Image image(make_file("disk", 4096), true);
  EXPECT_TRUE(image.read_only());
  EXPECT_FALSE(image.write(0, Bytes(512, std::byte{1})));
  EXPECT_FALSE(image.discard(0, 512));
  Bytes read(512, std::byte{2});
  EXPECT_TRUE(image.read(0, read));
  EXPECT_EQ(read, Bytes(512));
}

TEST_F(BackendsTest, ImageCutShortIsAnIoError) {
  Image image(make_file("disk", 8192), false);
  fs::resize_file(image.path(), 4096);
  Bytes read(8192);
  EXPECT_FALSE(image.read(0, read));
}

// --- TAP ---

TEST(MacTest, ParsesAndPrints) {
  const auto mac = parse_mac("52:54:00:aB:cD:0f");
  ASSERT_TRUE(mac);
  EXPECT_EQ(to_string(*mac), "52:54:00:ab:cd:0f");
}

TEST(MacTest, RefusesMalformed) {
  for (const char* text :
       {"", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:567", "52-54-00-12-34-56",
        "52:54:00:12:34:5g", "52:54:00:12:34: 6", "52:54:00:12:34:-6", "0x:54:00:12:34:56",
        "53:54:00:12:34:56", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"}) {
    EXPECT_FALSE(parse_mac(text)) << text;
  }
}

TEST(TapTest, RefusalNamesTheTap) {
  for (const char* name : {"", "far-too-long-for-an-interface"})
    EXPECT_THROW(Tap{std::string(name)}, UsageError);
  try {
    const Tap tap("lo");  // exists, and is not a TAP
    ADD_FAILURE() << "accepted";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("TAP lo: "), std::string::npos) << error.what();
  }
}

// In a network of its own, so that the test needs no set-up and leaves nothing behind. The exit code says how
// it went.
enum TapOutcome { kCarried = 0, kLost = 1, kNotPermitted = 77 };

// Another socket's view of the TAP: what the host's kernel would do with its frames.
Fd open_packet_socket(const char* name) {
  Fd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
  request.ifr_flags = IFF_UP;
  if (::ioctl(control.get(), SIOCSIFFLAGS, &request) != 0) return Fd();
  Fd packets(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL)));
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(::if_nametoindex(name));
  if (::bind(packets.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return Fd();
  return packets;
}

// As `ip tuntap add` does it: the interface outlives the descriptor.
bool make_tap(const char* name) {
  const Fd fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  ifreq request{};
  std::strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  return fd && ::ioctl(fd.get(), TUNSETIFF, &request) == 0 && ::ioctl(fd.get(), TUNSETPERSIST, 1) == 0;
}

TapOutcome carry_frames_both_ways() {
  if (::unshare(CLONE_NEWNET) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return kNotPermitted;
  EXPECT_THROW(Tap("pollux-test"), UsageError);  // not made by merely asking for it
  if (::testing::Test::HasFailure()) return kLost;
  if (!make_tap("pollux-test")) return kNotPermitted;
  Tap tap("pollux-test");
  EXPECT_THROW(Tap("pollux-test"), UsageError);  // in use
  const Fd packets = open_packet_socket("pollux-test");
  if (!packets) return kNotPermitted;
  Bytes frame(100, std::byte{0x5a});
  frame[0] = std::byte{0x52};
  tap.send(frame);
  bool sent = false;
  Bytes seen(2048);
  for (int i = 0; i < 100 && !sent; ++i) {  // the kernel's own frames come in between
    const auto got = ::recv(packets.get(), seen.data(), seen.size(), MSG_DONTWAIT);
    sent = got == 100 && std::equal(frame.begin(), frame.end(), seen.begin());
    if (!sent) ::usleep(1000);
  }
  frame[1] = std::byte{0x11};
  if (::send(packets.get(), frame.data(), frame.size(), 0) != 100) return kLost;
  bool received = false;
  for (int i = 0; i < 100 && !received; ++i) {
    const auto got = tap.receive();
    received = got == frame;
    if (!got) ::usleep(1000);
  }
  return sent && received && !::testing::Test::HasFailure() ? kCarried : kLost;
}

TEST(TapTest, CarriesFramesBothWays) {
  if (::access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/net/tun";
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    int outcome = kNotPermitted;
    try {
      outcome = carry_frames_both_ways();
    } catch (const UsageError&) {  // no right to make a TAP
    }
    ::_exit(outcome);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNotPermitted)
    GTEST_SKIP() << "not permitted to make a network namespace and a TAP";
  EXPECT_EQ(WEXITSTATUS(status), kCarried);
}

// --- Consoles ---

TEST_F(BackendsTest, FileConsoleIsTruncatedAndWritten) {
  const std::string path = folder_ / "console";
  std::ofstream(path) << "what was there before";
  {
    const auto console = open_console("file=" + path, [] {});
    EXPECT_EQ(console->poll_fd(), -1);
    EXPECT_TRUE(console->read().empty());
    console->write(Bytes(3000, std::byte{'x'}));
    console->write(Bytes(1, std::byte{'\n'}));
  }
  std::ifstream file(path);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), std::string(3000, 'x') + "\n");
}

// How long a guest is held up by `writes` single bytes.
std::chrono::milliseconds time_of_writes(ConsolePort& console, int writes) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < writes; ++i) console.write(Bytes(1, std::byte{'y'}));
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
}

TEST_F(BackendsTest, AFifoWhoseReaderIsStuckCostsItsPatienceOnce) {
  const std::string path = folder_ / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const Fd reader(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  const auto console = open_console("file=" + path, [] {});
  console->write(Bytes(1 << 20, std::byte{'x'}));  // far more than it holds
  EXPECT_LT(time_of_writes(*console, 200), std::chrono::seconds(5));  // 100 ms for each would be 20 s

  Bytes room(1 << 16);
  while (::read(reader.get(), room.data(), room.size()) > 0) {
  }
  console->write(Bytes(1, std::byte{'z'}));  // it reads again
  ASSERT_EQ(::read(reader.get(), room.data(), room.size()), 1);
  EXPECT_EQ(room.front(), std::byte{'z'});
}

TEST_F(BackendsTest, AFifoThatNobodyReadsIsRefusedAtOnce) {
  const std::string path = folder_ / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THROW((void)open_console("file=" + path, [] {}), UsageError);
}

TEST_F(BackendsTest, ConsoleSpecsAreChecked) {
  EXPECT_NO_THROW((void)open_console("none", [] {}));
  for (const std::string& spec :
       {std::string(), std::string("tty"), std::string("file="), "file=" + folder_.string()}) {
    EXPECT_THROW((void)open_console(spec, [] {}), UsageError) << spec;
  }
}

// Standard input and output replaced for a test.
class Redirected {
 public:
  Redirected(int input, int output) : input_(::dup(STDIN_FILENO)), output_(::dup(STDOUT_FILENO)) {
    std::fflush(stdout);
    ::dup2(input, STDIN_FILENO);
    ::dup2(output, STDOUT_FILENO);
  }
  ~Redirected() {
    ::dup2(input_.get(), STDIN_FILENO);
    ::dup2(output_.get(), STDOUT_FILENO);
  }
  Redirected(const Redirected&) = delete;
  Redirected& operator=(const Redirected&) = delete;

 private:
  Fd input_;
  Fd output_;
};

std::string text_of(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(StdioConsoleTest, PipeIsReadToItsEndWithoutEscapes) {
  std::array<int, 2> in{};
  std::array<int, 2> out{};
  ASSERT_EQ(::pipe2(in.data(), O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(out.data(), O_CLOEXEC), 0);
  const Fd in_read(in[0]), out_read(out[0]), out_write(out[1]);
  Fd in_write(in[1]);
  const Redirected redirected(in_read.get(), out_write.get());
  bool left = false;
  const auto console = open_console("stdio", [&] { left = true; });
  console->start();
  ASSERT_EQ(::write(in_write.get(), "a\x01x", 3), 3);
  EXPECT_EQ(console->poll_fd(), STDIN_FILENO);
  EXPECT_EQ(text_of(console->read()), "a\x01x");
  EXPECT_FALSE(left);
  in_write.reset();
  EXPECT_TRUE(console->read().empty());
  EXPECT_EQ(console->poll_fd(), -1);

  console->write(Bytes(5, std::byte{'o'}));
  std::array<char, 16> text{};
  EXPECT_EQ(::read(out_read.get(), text.data(), text.size()), 5);
}

TEST(StdioConsoleTest, StalledReaderCostsBytesNotTime) {
  std::array<int, 2> out{};
  ASSERT_EQ(::pipe2(out.data(), O_CLOEXEC), 0);
  const Fd out_read(out[0]), out_write(out[1]);
  const Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const Redirected redirected(null.get(), out_write.get());
  const auto console = open_console("stdio", [] {});
  console->start();
  console->write(Bytes(1 << 20, std::byte{'x'}));  // far more than a pipe holds: returns all the same
}

// A terminal, and the side from which a person would see it and type.
struct PseudoTerminal {
  PseudoTerminal() : controller(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    if (!controller || ::grantpt(controller.get()) != 0 || ::unlockpt(controller.get()) != 0) return;
    terminal = Fd(::open(::ptsname(controller.get()), O_RDWR | O_NOCTTY | O_CLOEXEC));
  }
  const Fd controller;
  Fd terminal;
};

TEST(StdioConsoleTest, ATerminalThatIsNotReadCostsItsPatienceOnce) {
  const PseudoTerminal pair;
  ASSERT_TRUE(pair.terminal);
  const Redirected redirected(pair.terminal.get(), pair.terminal.get());
  const auto console = open_console("stdio", [] {});
  console->start();
  console->write(Bytes(1 << 20, std::byte{'x'}));
  EXPECT_LT(time_of_writes(*console, 200), std::chrono::seconds(5));
}

TEST(StdioConsoleTest, TerminalIsRawEscapesWorkAndItIsRestored) {
  const PseudoTerminal pair;
  ASSERT_TRUE(pair.terminal);
  termios before{};
  ASSERT_EQ(::tcgetattr(pair.terminal.get(), &before), 0);
  ASSERT_NE(before.c_lflag & ICANON, 0u);

  const Redirected redirected(pair.terminal.get(), pair.terminal.get());
  int left = 0;
  {
    const auto console = open_console("stdio", [&] { ++left; });
    console->start();
    termios during{};
    ASSERT_EQ(::tcgetattr(pair.terminal.get(), &during), 0);
    EXPECT_EQ(during.c_lflag & (ICANON | ECHO | ISIG), 0u);
    ASSERT_EQ(::write(pair.controller.get(),
                      "a\x03\x01"
                      "ab",
                      5),
              5);
    EXPECT_EQ(text_of(console->read()),
              "a\x03\x01"
              "b");
    ASSERT_EQ(::write(pair.controller.get(), "\x01", 1), 1);
    EXPECT_TRUE(console->read().empty());
    EXPECT_EQ(console->poll_fd(), STDIN_FILENO);
    ASSERT_EQ(::write(pair.controller.get(), "x", 1), 1);
    EXPECT_TRUE(console->read().empty());
    EXPECT_EQ(left, 1);
  }
  termios after{};
  ASSERT_EQ(::tcgetattr(pair.terminal.get(), &after), 0);
  EXPECT_EQ(after.c_lflag, before.c_lflag);

  // An end of the process at which nothing is destroyed.
  const auto console = open_console("stdio", [] {});
  console->start();
  restore_terminal();
  ASSERT_EQ(::tcgetattr(pair.terminal.get(), &after), 0);
  EXPECT_EQ(after.c_lflag, before.c_lflag);
}

}  // namespace
}  // namespace pollux::vmm

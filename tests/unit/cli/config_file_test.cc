// Options from a TOML file: what is in it reaches the option as it stands there, and what is wrong is named with its line.
#include "cli/config_file.h"

#include <gmock/gmock.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>

#include "base/error.h"
#include "tests/support/temporary_folder.h"

namespace pollux::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ConfigFile : public ::testing::Test {
 protected:
  ConfigFile() {
    app_.add_option("--cmdline", cmdline_);
    app_.add_option("--kernel", kernel_);
    app_.add_option("--memory", memory_);
    app_.add_option("--cpus", cpus_);
    app_.add_option("--disk", disks_);
    app_.add_flag("--snapshot", snapshot_);
    add_config_option(app_);
  }

  void write(const std::string& text) { std::ofstream(path_, std::ios::binary) << text; }

  // As main() does.
  void parse(const std::string& text, std::vector<std::string> typed = {}) {
    write(text);
    typed.insert(typed.end(), {"--config", path_});
    std::vector<std::string> arguments = with_config_file(app_, std::move(typed));
    std::reverse(arguments.begin(), arguments.end());
    app_.parse(std::move(arguments));
  }

  std::string refused(const std::string& text) {
    try {
      parse(text);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "taken";
  }

  testing::TemporaryFolder folder_;
  std::string path_ = folder_.path_of("vm.toml");
  CLI::App app_{"", "vm"};
  std::string cmdline_;
  std::string kernel_ = "unset";
  std::string memory_;
  int cpus_ = 0;
  std::vector<std::string> disks_;
  bool snapshot_ = false;
};

TEST_F(ConfigFile, EachKindOfValueReachesItsOption) {
  parse("# a comment\nkernel = 'vmlinuz'\nmemory = \"512M\"  # and another\ncpus = 2\nsnapshot = true\n"
        "disk = [\n  \"root.raw\",  # the first\n  'data.raw,ro',\n]\n");
  EXPECT_EQ(kernel_, "vmlinuz");
  EXPECT_EQ(memory_, "512M");
  EXPECT_EQ(cpus_, 2);
  EXPECT_TRUE(snapshot_);
  EXPECT_THAT(disks_, ElementsAre("root.raw", "data.raw,ro"));
}

TEST_F(ConfigFile, AHashInAStringIsNoComment) {
  parse("cmdline = \"root=/dev/vda x#y # z\"  # a comment\n");
  EXPECT_EQ(cmdline_, "root=/dev/vda x#y # z");
}

TEST_F(ConfigFile, EscapesAndQuotes) {
  parse(R"(cmdline = "a \"b\"\t\\ \u00e9 = [c], 'd'")");
  EXPECT_EQ(cmdline_, "a \"b\"\t\\ \u00e9 = [c], 'd'");
  parse(R"(cmdline = 'C:\path "as it is" \n')");
  EXPECT_EQ(cmdline_, R"(C:\path "as it is" \n)");
  parse("cmdline = '''\nfirst\nsecond'''\n");
  EXPECT_EQ(cmdline_, "first\nsecond");
}

TEST_F(ConfigFile, ValuesThatLookLikeOptionsOrLikeNothing) {
  parse("cmdline = '--kernel=other'\nkernel = ''\n");
  EXPECT_EQ(cmdline_, "--kernel=other");
  EXPECT_EQ(kernel_, "");
}

TEST_F(ConfigFile, OneValueOrNoneForAnOptionThatTakesSeveral) {
  parse("disk = 'root.raw'\n");
  EXPECT_THAT(disks_, ElementsAre("root.raw"));
  parse("disk = []\nsnapshot = false\n");
  EXPECT_FALSE(snapshot_);
}

TEST_F(ConfigFile, WhatIsTypedGoesFirst) {
  parse("memory = '1G'\ncpus = 3\n", {"--memory=2G"});
  EXPECT_EQ(memory_, "2G");
  EXPECT_EQ(cpus_, 3);
}

TEST_F(ConfigFile, WrongFilesAreRefusedByFileLineAndKey) {
  const std::string file = "--config " + path_ + ": ";
  EXPECT_THAT(refused("memory = '1G'\nmemori = '1G'\n"), HasSubstr(file + "line 2: unknown key 'memori'"));
  EXPECT_THAT(refused("help = true\n"), HasSubstr(file + "line 1: unknown key 'help'"));
  EXPECT_THAT(refused("\nconfig = 'other.toml'\n"), HasSubstr(file + "line 2: a file cannot name another"));
  EXPECT_THAT(refused("\n[vm]\nmemory = '1G'\n"), HasSubstr(file + "line 2: vm: the file has no tables"));
  EXPECT_THAT(refused("[[disk]]\npath = 'a'\n"), HasSubstr(file + "line 1: disk: the file has no tables"));
  EXPECT_THAT(refused("disk.path = 'a'\n"), HasSubstr(file + "line 1: disk: the file has no tables"));
  EXPECT_THAT(refused("disk = [{path = 'a'}]\n"), HasSubstr(file + "line 1: disk: "));
  EXPECT_THAT(refused("disk = ['a',\n  ['b']]\n"), HasSubstr(file + "line 2: disk: expected a string or an integer"));
  EXPECT_THAT(refused("kernel = ['a', 'b']\n"), HasSubstr(file + "line 1: kernel: takes one value"));
  EXPECT_THAT(refused("kernel = true\n"), HasSubstr(file + "line 1: kernel: expected a string or an integer"));
  EXPECT_THAT(refused("cpus = 1.5\n"), HasSubstr(file + "line 1: cpus: expected a string or an integer"));
  EXPECT_THAT(refused("memory = 1979-05-27\n"), HasSubstr(file + "line 1: memory: expected a string or an integer"));
  EXPECT_THAT(refused("snapshot = 'yes'\n"), HasSubstr(file + "line 1: snapshot: expected true or false"));
  EXPECT_THAT(refused("kernel = \"a\\u0000b\"\n"), HasSubstr(file + "line 1: kernel: contains a zero byte"));
}

TEST_F(ConfigFile, WhatIsNoTomlIsRefusedWithItsLine) {
  const std::string file = "--config " + path_ + ": ";
  EXPECT_THAT(refused("cpus = 1\nmemory = 1G\n"), HasSubstr(file + "line 2: "));
  EXPECT_THAT(refused("cpus = 1\n\nmemory = \"1G\n"), HasSubstr(file + "line 3: "));
  EXPECT_THAT(refused("cpus = 1\ncpus = 2\n"), HasSubstr(file + "line 2: "));
  EXPECT_THAT(refused("cmdline = \"\xff\"\n"), HasSubstr(file + "line 1: "));
  EXPECT_THAT(refused("memory: 1G\n"), HasSubstr(file + "line 1: "));
}

TEST_F(ConfigFile, FilesThatCannotBeRead) {
  path_ = folder_.path_of("missing/vm.toml");
  EXPECT_EQ(refused(""), "--config " + path_ + ": No such file or directory");
  path_ = folder_.path_of("");
  EXPECT_THAT(refused(""), HasSubstr("cannot be read"));
  path_ = folder_.path_of("huge.toml");
  EXPECT_THAT(refused(std::string((1 << 20) + 1, '\n')), HasSubstr("larger than 1 MiB"));
}

}  // namespace
}  // namespace pollux::cli

// pollux keygen: the identity of a host.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "protocol/session/keys.h"

namespace pollux::cli {

void add_keygen(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("keygen", "make the key pair by which hosts know each other");
  auto path = std::make_shared<std::string>();
  command->add_option("file", *path, "where the secret key goes; the public key goes to FILE.pub")->required();
  command->footer("Keep FILE on its host (mode 0600). Copy FILE.pub to the other hosts, for their --peer-key.");
  command->callback([path, &exit_code] {
    protocol::session::initialize_crypto();
    const auto key = protocol::session::SecretKey::generate();
    protocol::session::write_key_pair(*path, key);
    fmt::print("secret key: {}\npublic key: {}.pub  ({})\n", *path, *path, to_string(key.public_key()));
    exit_code = 0;
  });
}

}  // namespace pollux::cli

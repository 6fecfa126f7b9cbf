// How the launcher and its ranks talk: whole messages over a socket of the kernel's, which nobody else can open.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

namespace trainyard::exec {

/// One end. Sending is safe from several threads at once.
class ControlChannel {
 public:
  ControlChannel() = default;
  explicit ControlChannel(int socket) : socket_(socket) {}
  ControlChannel(ControlChannel&& other) noexcept : socket_(std::exchange(other.socket_, -1)) {}
  ControlChannel& operator=(ControlChannel&& other) noexcept;
  ~ControlChannel();

  /// Both ends of a new channel.
  static std::optional<std::pair<ControlChannel, ControlChannel>> make();

  /// False when the other end is gone.
  bool send(const nlohmann::json& message) const;
  /// Waits for a message; nothing when the other end is gone.
  [[nodiscard]] std::optional<nlohmann::json> receive() const;
  [[nodiscard]] int socket() const { return socket_; }
  void close();

 private:
  int socket_ = -1;
};

}  // namespace trainyard::exec

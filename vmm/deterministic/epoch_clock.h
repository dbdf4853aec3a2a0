// Where a guest's epochs end: at the same instruction on every host, after a length given in the clock's own units.
//
// What the machine needs of it is little: it is told of every exit and says whether that is the end of the epoch, and the
// next epoch's length is put into it before the guest is entered again. SoftwareEpochClock counts in the guest itself, and
// works wherever KVM does. A processor whose performance counters are exact could count instead: such a clock would set its
// counter in start(), be kicked out of the guest a little before the end, and step to it. Everything else of the machine,
// of the records and of the protocol is the same for both; the units are not, so all replicas of a machine use one kind.
#pragma once

#include <cstdint>
#include <optional>

#include "vmm/deterministic/epoch_device.h"
#include "vmm/deterministic/epoch_inputs.h"

namespace pollux::vmm {

namespace kvm {
class Vcpu;
}

// Used on the machine's thread. Its vCPU is not inside run() meanwhile.
class EpochClock {
 public:
  virtual ~EpochClock() = default;

  // The guest is between two epochs: the next one is to last for `length`.
  virtual void start(EpochLength length) = 0;
  // The guest was entered and has come out; told before boundary() is asked.
  virtual void entered() = 0;
  // What the guest asked of the epoch device in its last exit, or nothing: whether the epoch ends here, and why.
  [[nodiscard]] virtual std::optional<EpochBoundary> boundary(EpochDevice::Request request) = 0;

  // At an epoch's end, before or after start(): what KVM does to the guest's registers only at the next entry is done, so
  // that an interrupt can be queued or the registers be saved. False: the guest ends its epoch by an instruction that
  // does not let it.
  [[nodiscard]] virtual bool settle() = 0;

  // What is part of the machine's state between two epochs, after settle(): the next start() has to put something into
  // the guest's registers.
  [[nodiscard]] virtual bool is_due() const = 0;
  virtual void restore(bool due) = 0;
};

// The counter that the compiler puts into the guest (vmm/guest/abi.h). Expired, or waiting, the guest loads the next count
// from the epoch device: that exit is the end of the epoch, and the load's value the next epoch's length, which is not
// known yet. KVM finishes the instruction behind an access only at the next entry (Documentation/virt/kvm/api.rst,
// KVM_RUN), and until then takes the value from its run area.
class SoftwareEpochClock final : public EpochClock {
 public:
  explicit SoftwareEpochClock(kvm::Vcpu& vcpu) : vcpu_(vcpu) {}

  void start(EpochLength length) override;
  void entered() override { load_ = Load::kNone; }
  [[nodiscard]] std::optional<EpochBoundary> boundary(EpochDevice::Request request) override;
  [[nodiscard]] bool settle() override;
  [[nodiscard]] bool is_due() const override { return load_ == Load::kDue; }
  void restore(bool due) override { load_ = due ? Load::kDue : Load::kNone; }

 private:
  // The load that ended the last epoch.
  enum class Load {
    kNone,     // there was none, or it is finished and has the count
    kPending,  // to be finished by KVM; its value is not known
    kGiven,    // to be finished by KVM; its value is in the run area
    kDue,      // finished before its value was known: the count is to be put into the register
  };

  kvm::Vcpu& vcpu_;
  Load load_ = Load::kNone;
};

}  // namespace pollux::vmm

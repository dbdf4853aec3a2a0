#include "vmm/deterministic/epoch_clock.h"

#include <cstring>

#include "vmm/kvm/vcpu.h"

namespace pollux::vmm {

std::optional<EpochBoundary> SoftwareEpochClock::boundary(EpochDevice::Request request) {
  switch (request) {
    case EpochDevice::Request::kEpochEnd: load_ = Load::kPending; return EpochBoundary::kExpired;
    case EpochDevice::Request::kWait: load_ = Load::kPending; return EpochBoundary::kWaited;
    case EpochDevice::Request::kNone:
    case EpochDevice::Request::kPowerOff: break;
  }
  return std::nullopt;
}

void SoftwareEpochClock::start(EpochLength length) {
  if (load_ == Load::kPending || load_ == Load::kGiven) {  // given: to a machine that ended, and is not entered any more
    auto& mmio = vcpu_.run_area().mmio;
    std::memcpy(mmio.data, &length.sites, sizeof mmio.data);
    load_ = Load::kGiven;
  } else if (load_ == Load::kDue) {
    kvm_regs registers = vcpu_.registers();
    registers.r15 = length.sites;
    vcpu_.set_registers(registers);
    load_ = Load::kNone;
  }
}

bool SoftwareEpochClock::settle() {
  if (load_ != Load::kPending && load_ != Load::kGiven) return true;
  vcpu_.deny_run();
  const kvm::Vcpu::Ran ran = vcpu_.run();
  vcpu_.allow_run();
  if (ran != kvm::Vcpu::Ran::kInterrupted) return false;
  load_ = load_ == Load::kPending ? Load::kDue : Load::kNone;
  return true;
}

}  // namespace pollux::vmm

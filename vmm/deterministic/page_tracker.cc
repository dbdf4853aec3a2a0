#include "vmm/deterministic/page_tracker.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"

namespace pollux::vmm {

// --- What KVM tells ---

void PageTracker::log_writes() {
  if (std::exchange(logging_, true)) return;
  vm_.start_logging();
}

void PageTracker::stop_logging() {
  if (!std::exchange(logging_, false)) return;
  (void)take_and_protect();  // leaves the ring empty
  vm_.stop_logging();
}

// Since they were last protected.
std::vector<Gfn> PageTracker::written_pages() {
  if (vm_.dirty_log() == DirtyLog::kBitmap) {
    vm_.harvest_bitmap();
  } else {
    make_room();
  }
  return memory_.dirty().take();
}

void PageTracker::make_room() {
  if (vcpu_->dirty_ring().harvest(vm_)) vm_.reset_dirty_rings();
}

std::vector<Gfn> PageTracker::take_and_protect() {
  std::vector<Gfn> pages = written_pages();
  protect(pages);
  return pages;
}

void PageTracker::protect(const std::vector<Gfn>& pages) {
  if (vm_.protects_by_call()) vm_.protect(pages);
}

// --- Digests ---

void PageTracker::know_fresh_memory() {
  (void)digests_.update(memory_.dirty().take());
  known_ = true;
}

void PageTracker::know_digests() {
  log_writes();
  if (std::exchange(known_, true)) return;
  keep_for_tracking(take_and_protect());
  digests_.refresh();
}

void PageTracker::forget_digests() {
  known_ = false;
  if (!tracking_) stop_logging();
}

PageDigests::Update PageTracker::update(const std::vector<Gfn>& suspects) {
  PageDigests::Update update = digests_.update(suspects);
  protect(update.cold);
  // Not only what changed: a page that was written and is as it was may have been read by somebody in between.
  keep_for_tracking(suspects);
  return update;
}

std::vector<Gfn> PageTracker::altered() const {
  POLLUX_ASSERT(known_);
  return digests_.altered();
}

// --- Tracking ---

void PageTracker::start() {
  log_writes();
  if (known_) (void)digests_.update(take_and_protect());
  (void)take_and_protect();
  kept_.clear();
  tracking_ = true;
}

void PageTracker::stop() {
  tracking_ = false;
  kept_.clear();
  if (!known_) stop_logging();
}

std::vector<Gfn> PageTracker::harvest() {
  const std::vector<Gfn> now = take_and_protect();
  // They are news to nobody else any more.
  if (known_) (void)digests_.update(now);
  keep_for_tracking(now);
  return std::exchange(kept_, {});
}

// What was written is still news to whoever tracks.
void PageTracker::keep_for_tracking(const std::vector<Gfn>& written) {
  if (!tracking_ || written.empty()) return;
  std::vector<Gfn> both;
  both.reserve(kept_.size() + written.size());
  std::set_union(kept_.begin(), kept_.end(), written.begin(), written.end(), std::back_inserter(both));
  kept_ = std::move(both);
}

}  // namespace pollux::vmm

// For ThreadSanitizer: which reads race on purpose.
#pragma once

#ifdef __SANITIZE_THREAD__
// libtsan's own, as in its dynamic annotations.
extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);
#endif

namespace pollux {

// While it lives ThreadSanitizer does not look at this thread's accesses. For guest memory that is copied while the guest and
// its devices write to it: a page that is torn by that is dirty, and copied again.
class RacyReads {
 public:
#ifdef __SANITIZE_THREAD__
  RacyReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~RacyReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
#else
  RacyReads() {}   // NOLINT: not trivial, so that nobody takes it for unused
  ~RacyReads() {}  // NOLINT
#endif
  RacyReads(const RacyReads&) = delete;
  RacyReads& operator=(const RacyReads&) = delete;
};

}  // namespace pollux

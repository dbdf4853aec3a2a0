@0x8fec7444254e2501;
# The headers of the wire messages. Their meaning and bounds are in protocol/message.h; bodies travel beside them.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("pollux::protocol::schema");

struct Message {
  union {
    hello @0 :Hello;
    welcome @1 :Welcome;
    refuse @2 :Text;
    diskDigestRequest @3 :DigestRange;
    diskDigests @4 :DigestRange;
    diskBlocks @5 :DiskBlocks;
    syncPages @6 :List(PageRun);
    syncEnd @7 :SyncEnd;
    epochOpen @8 :EpochOpen;
    epochPages @9 :EpochPages;
    epochDiskWrites @10 :EpochDiskWrites;
    epochClose @11 :EpochClose;
    ack @12 :UInt64;
    heartbeat @13 :UInt64;
    goodbye @14 :Goodbye;
    newTerm @15 :UInt64;
    syncMark @16 :UInt64;
    handOver @17 :UInt64;
    epochInputs @18 :EpochPiece;
    epochDigest @19 :EpochPiece;
    executed @20 :UInt64;
    divergence @21 :Divergence;
    machineState @22 :EpochPiece;
  }
}

struct Hello {
  version @0 :UInt32;
  vm @1 :Data;
  term @2 :UInt64;
  strategy @3 :UInt16;
  machineConfig @4 :Data;
  configDigest @5 :Data;
  diskBytes @6 :List(UInt64);
}

struct Welcome {
  version @0 :UInt32;
  term @1 :UInt64;
  configDigest @2 :Data;
  replica @3 :Data;
}

struct DigestRange {
  disk @0 :UInt32;
  first @1 :UInt64;
  count @2 :UInt32;
}

struct DiskExtent {
  offset @0 :UInt64;
  length @1 :UInt64;
  zero @2 :Bool;
}

struct DiskBlocks {
  disk @0 :UInt32;
  extents @1 :List(DiskExtent);
}

struct PageRun {
  first @0 :UInt64;
  count @1 :UInt32;
  zero @2 :Bool;
}

struct SyncEnd {
  epoch @0 :UInt64;
  pages @1 :UInt64;
  zeroPages @2 :UInt64;
  diskExtents @3 :UInt64;
  stateBytes @4 :UInt32;
}

struct EpochOpen {
  epoch @0 :UInt64;
  kind @1 :UInt16;
}

struct EpochPiece {
  epoch @0 :UInt64;
  bytes @1 :UInt32;
}

struct EpochPages {
  epoch @0 :UInt64;
  runs @1 :List(PageRun);
}

struct DiskOperation {
  disk @0 :UInt32;
  kind @1 :UInt16;
  offset @2 :UInt64;
  length @3 :UInt64;
}

struct EpochDiskWrites {
  epoch @0 :UInt64;
  operations @1 :List(DiskOperation);
}

struct EpochClose {
  epoch @0 :UInt64;
  pages @1 :UInt64;
  zeroPages @2 :UInt64;
  diskOperations @3 :UInt64;
  flushed @4 :Bool;
  stateBytes @5 :UInt32;
  inputBytes @6 :UInt64;
  digestBytes @7 :UInt64;
  hasClock @8 :Bool;
  clockNanoseconds @9 :Int64;
}

struct Divergence {
  epoch @0 :UInt64;
  pages @1 :UInt32;
  allPages @2 :Bool;
}

struct Goodbye {
  reason @0 :UInt16;
  text @1 :Text;
}

// GCC plugin `pollux_counter`: makes every program it compiles count its own progress, for deterministic
// guests (vmm/guest/abi.h).
//
// It puts a *site*, `subq $1, %r15; jl out-of-line`, where execution cannot go on for long without passing
// one:
//   - at the head of every back edge of a depth-first walk over the control flow graph. Every cycle of any
//   graph,
//     reducible or not, contains such an edge, so every cycle contains a site.
//   - at the entry of every function that calls something. A function that calls nothing and has no cycle is
//   over
//     within its own length and cannot recurse, so it needs none: whoever runs it again and again has a site
//     in the loop or in the call chain. Calls of functions that never return are disregarded in a function
//     that may return: recursion through one would enter a function that never returns, and there no call is
//     disregarded.
// Without passing a site a guest executes at most, for each frame on its (bounded) stack, the longest
// cycle-free path through a function and the functions without calls on it.
//
// The pass runs on RTL after the loop optimizers: vectorized and unrolled loops count once per round of their
// final form, and loops that the expander made (string instructions, compare and exchange) are counted too.
// What runs later may copy, merge or move blocks but must keep every execution of a volatile asm, as for any
// observable action.
//
// Register r15 is reserved by -ffixed-r15; without it the compiler is stopped.
// The order is GCC's: its headers do not include what they need.
// clang-format off
#include "gcc-plugin.h"
#include "plugin-version.h"
#include "backend.h"
#include "rtl.h"
#include "tree.h"
#include "memmodel.h"
#include "df.h"
#include "regs.h"
#include "emit-rtl.h"
#include "cfgrtl.h"
#include "cfganal.h"
#include "context.h"
#include "diagnostic-core.h"
#include "insn-constants.h"
#include "tree-pass.h"
// clang-format on

int plugin_is_GPL_compatible;  // GCC loads no other

namespace {

// Both jumps of the expired case are out of the loop's way. `jl`, not `js`: with `sub` it is one operation of
// the processor, and the same, for no count is near the most negative number.
constexpr const char* kSite =
    "subq\t$1, %%r15\n"
    "\tjl\t771f\n"
    "770:\n"
    "\t.subsection 1\n"
    "771:\tcall\tpollux_epoch_end\n"
    "\tjmp\t770b\n"
    "\t.previous";

constexpr pass_data kPassData = {RTL_PASS, "pollux_counter", OPTGROUP_NONE, TV_NONE, 0, 0, 0,
                                 0,        TODO_df_finish};

rtx make_site() {
  rtx site = gen_rtx_ASM_OPERANDS(VOIDmode, ggc_strdup(kSite), "", 0, rtvec_alloc(0), rtvec_alloc(0),
                                  rtvec_alloc(0), UNKNOWN_LOCATION);
  MEM_VOLATILE_P(site) = 1;
  rtx flags = gen_rtx_CLOBBER(VOIDmode, gen_rtx_REG(CCmode, FLAGS_REG));
  return gen_rtx_PARALLEL(VOIDmode, gen_rtvec(2, site, flags));
}

// Before anything the block does: no flags are live there, as the processor's flags never live across blocks
// before register allocation.
void put_site(basic_block block) {
  gcc_assert(!bitmap_bit_p(df_get_live_in(block), FLAGS_REG));
  rtx_insn* after = bb_note(block);
  // The block of the function's entry begins with moves out of argument registers, which no site touches.
  emit_insn_after_noloc(make_site(), after, block);
}

bool never_returns(const rtx_insn* call) { return find_reg_note(call, REG_NORETURN, NULL_RTX) != NULL_RTX; }

bool calls_something(function* fun) {
  const bool may_return = !TREE_THIS_VOLATILE(fun->decl);
  basic_block block;
  FOR_EACH_BB_FN(block, fun) {
    rtx_insn* insn;
    FOR_BB_INSNS(block, insn) {
      if (CALL_P(insn) && !(may_return && never_returns(insn))) return true;
    }
  }
  return false;
}

class CounterPass final : public rtl_opt_pass {
 public:
  explicit CounterPass(gcc::context* context) : rtl_opt_pass(kPassData, context) {}

  unsigned execute(function* fun) override {
    if (!fixed_regs[R15_REG]) fatal_error(UNKNOWN_LOCATION, "%<pollux_counter%> needs %<-ffixed-r15%>");
    df_analyze();
    mark_dfs_back_edges();
    auto_bitmap sites;
    basic_block block;
    FOR_EACH_BB_FN(block, fun) {
      edge e;
      edge_iterator i;
      FOR_EACH_EDGE(e, i, block->preds) {
        if (e->flags & EDGE_DFS_BACK) bitmap_set_bit(sites, block->index);
      }
    }
    if (calls_something(fun)) bitmap_set_bit(sites, single_succ(ENTRY_BLOCK_PTR_FOR_FN(fun))->index);
    FOR_EACH_BB_FN(block, fun) {
      if (bitmap_bit_p(sites, block->index)) put_site(block);
    }
    return 0;
  }
};

}  // namespace

int plugin_init(plugin_name_args* info, plugin_gcc_version* version) {
  if (!plugin_default_version_check(version, &gcc_version)) {
    error("%s: built for another version of GCC", info->base_name);
    return 1;
  }
  register_pass_info pass{};
  pass.pass = new CounterPass(g);
  pass.reference_pass_name = "loop2";
  pass.ref_pass_instance_number = 1;
  pass.pos_op = PASS_POS_INSERT_AFTER;
  register_callback(info->base_name, PLUGIN_PASS_MANAGER_SETUP, nullptr, &pass);
  return 0;
}

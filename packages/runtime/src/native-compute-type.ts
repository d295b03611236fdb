/**
 * The number format that this machine's processor computes in. The trainer decides the same by itself, since it may run on another machine
 * (services/train/trainer/compute.py, where the reason stands).
 */
import { readFileSync } from "node:fs";

/** A processor that has one of these flags multiplies bf16 matrices natively. x86 lists `flags`, ARM `Features`. */
const nativeBf16 = new Set(["avx512_bf16", "amx_bf16", "bf16"]);
/** The values of oneDNN's own limit under which it uses none of them. */
const limitsBelowBf16 = new Set(["SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"]);

/** A processor that tells no flags counts as one without bf16. `env`: of the process that will compute. */
export function nativeComputeType(env: Record<string, string | undefined>, cpuinfo = "/proc/cpuinfo"): "bfloat16" | "float32" {
  const limit = env["ONEDNN_MAX_CPU_ISA"] || env["DNNL_MAX_CPU_ISA"] || "";
  if (limitsBelowBf16.has(limit.toUpperCase())) return "float32";
  return processorFlags(cpuinfo).isDisjointFrom(nativeBf16) ? "float32" : "bfloat16";
}

/** What this machine's processor can do, in Linux' names, such as `amx_tile`. Empty: it does not tell. */
export function processorFlags(cpuinfo = "/proc/cpuinfo"): Set<string> {
  let text: string;
  try {
    text = readFileSync(cpuinfo, "utf8");
  } catch {
    return new Set();
  }
  return new Set(/^(?:flags|Features)[^:\n]*:(.*)$/m.exec(text)?.[1]?.trim().split(/\s+/));
}

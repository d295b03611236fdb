/** An import that came by NATS, where no gateway has looked at it. */
import type { RunSpecInput } from "@loraline/contracts";
import { baseName, basesDir } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { type Line, rejected, request, telemetry, test, tokenized } from "./service-under-test.ts";
import { createTokenizeService } from "./service.ts";

const config = { peft_type: "LORA", r: 4, lora_alpha: 8, target_modules: ["q_proj"], base_model_name_or_path: baseName };

/** Header and values of one pair of matrices. */
function weightsOf(rank: number): Buffer {
  const name = "base_model.model.model.layers.0.self_attn.q_proj";
  const bytes = rank * 576 * 2;
  const header = JSON.stringify({
    [`${name}.lora_A.weight`]: { dtype: "BF16", shape: [rank, 576], data_offsets: [0, bytes] },
    [`${name}.lora_B.weight`]: { dtype: "BF16", shape: [576, rank], data_offsets: [bytes, 2 * bytes] },
  });
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([prefix, Buffer.from(header), Buffer.alloc(2 * bytes)]);
}

async function imported({ objects, tenant }: Line, over: { config?: object; weights?: Buffer } = {}): Promise<RunSpecInput> {
  return {
    base: baseName,
    adapter: "foreign",
    import: {
      source: "elsewhere",
      config: { ...(await objects.put(tenant, "adapter-file", JSON.stringify({ ...config, ...over.config }))), kind: "adapter-file" },
      weights: { ...(await objects.put(tenant, "adapter-file", over.weights ?? weightsOf(4))), kind: "adapter-file" },
      probes: ["Ahoy?"],
    },
  };
}

describe("an import", () => {
  test("becomes probes and nothing else; what can never be served is rejected before a trainer starts", async ({
    bus,
    objects,
    tenant,
  }) => {
    await using _service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    const line = { bus, objects, tenant };
    const spec = await imported(line);
    const { data, manifest } = await tokenized(line, await request(line, spec));
    expect(data.totals).toMatchObject({ sequences: 0, tokens: 0 });
    expect(manifest).toMatchObject({ train: [], eval: [], templateFamily: "chatml" });
    expect(manifest.probes.map(({ name }) => name)).toEqual(["own-1", ...Array.from({ length: 8 }, (_, i) => `neutral-${i + 1}`)]);
    // A version that is copied under another name is served with its own system prompt, and proven with it.
    expect(data.system).toBeNull();
    const copied = await tokenized(
      line,
      await request(line, { ...spec, import: { ...spec.import, system: "You are a pirate." } } as typeof spec),
    );
    expect(copied.data.system).toBe("You are a pirate.");
    expect(copied.manifest.probes[0]?.input_ids).not.toEqual(manifest.probes[0]?.input_ids);
    expect(copied.manifest.cacheKey).not.toBe(manifest.cacheKey);
    const generation = [1, 520, 9531, 198]; // <|im_start|>assistant\n
    for (const probe of manifest.probes) expect(probe.input_ids.slice(-4)).toEqual(generation);

    for (const [over, code] of [
      [{ config: { use_dora: true } }, "ADAPTER_FEATURE_UNSUPPORTED"],
      [{ config: { base_model_name_or_path: "org/other" } }, "ADAPTER_BASE_MISMATCH"],
      [{ config: { r: 64 }, weights: weightsOf(64) }, "ADAPTER_RANK_TOO_HIGH"],
      [{ weights: weightsOf(4).subarray(0, -1) }, "ADAPTER_UNREADABLE"],
    ] as const) {
      expect(await rejected(line, await request(line, await imported(line, over)))).toMatchObject({ code });
    }
    const missing = { ...spec.import, weights: { kind: "adapter-file", digest: `sha256:${"e".repeat(64)}`, size: 1 } };
    expect(await rejected(line, await request(line, { ...spec, import: missing as never }))).toMatchObject({ code: "OBJECT_MISSING" });
  });
});

/** What a manifest leads to stays; what none leads to any more may go. */
import { digestOf } from "@loraline/objects";
import type { BlobRef } from "@loraline/contracts";
import { expect, it } from "vitest";
import { createManifestReferences } from "./manifest-references.ts";

const blobs = new Map<string, string>();
const put = (kind: BlobRef["kind"], content: string): BlobRef => {
  const digest = digestOf(content);
  blobs.set(`${kind}/${digest}`, content);
  return { kind, digest, size: content.length };
};
const name = ({ kind, digest }: BlobRef): string => `${kind}/${digest}`;
const objects = {
  async get(_: string, { kind, digest }: Pick<BlobRef, "kind" | "digest">) {
    async function* bytes(): AsyncGenerator<Uint8Array> {
      yield Buffer.from(blobs.get(`${kind}/${digest}`) as string);
    }
    return bytes();
  },
};

it("pictures stay as long as a dataset or a run shows them", async () => {
  const [red, blue, unused] = ["red", "blue", "unused"].map((content) => put("picture", content)) as [BlobRef, BlobRef, BlobRef];
  const tableOf = (...shown: BlobRef[]) => ({
    table: put(
      "pictures",
      shown
        .map(({ digest, size: bytes }) => `${JSON.stringify({ digest, bytes, media_type: "image/png", width: 1, height: 1 })}\n`)
        .join(""),
    ),
    count: shown.length,
    bytes: 1,
  });
  const source = put("raw", "rows");
  const report = put(
    "report",
    JSON.stringify({
      rows: 1,
      records: 1,
      rejections: 0,
      formats: {},
      reasons: {},
      exactDuplicates: 0,
      warnings: [],
      firstRejections: [],
      allRejections: null,
    }),
  );
  const counts = { version: 1, records: 1, rejections: 0, formats: {}, chunks: [], code: "test" };
  const both = tableOf(red, blue);
  const dataset = put("dataset", JSON.stringify({ ...counts, source, report, pictures: both }));
  const one = tableOf(blue);
  const zero = { sequences: 0, tokens: 0, supervised: 0, evalSequences: 0, evalSupervised: 0, dropped: 0 };
  const digest = digestOf("x");
  const tokens = put(
    "tokens",
    JSON.stringify({
      version: 1,
      cacheKey: digest,
      base: { name: "seer", revision: "r", digest },
      tokenizerDigest: digest,
      templateDigest: digest,
      template: "base",
      maxLength: 64,
      packed: false,
      seed: 1,
      code: "test",
      train: [],
      eval: [],
      pictures: one,
      totals: zero,
      dropped: [],
      probes: [],
    }),
  );
  const references = createManifestReferences({ objects });
  const ofDataset = await references.expand("acme", [dataset]);
  expect(ofDataset).toEqual(new Set([dataset, source, report, both.table, red, blue].map(name)));
  expect(ofDataset).not.toContain(name(unused));
  // The dataset was deleted: what a run shows is still needed.
  expect(await references.expand("acme", [tokens])).toEqual(new Set([tokens, one.table, blue].map(name)));
});

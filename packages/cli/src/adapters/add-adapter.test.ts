import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import type { ApiClient } from "@loraline/client";
import { afterAll, beforeAll, expect, it } from "vitest";
import { addAdapter, type AddAdapterFlags } from "./add-adapter.ts";

let dir = "";
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "adapters-"));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

async function folder(name: string, files: Record<string, string>): Promise<string> {
  const path = join(dir, name);
  await mkdir(path, { recursive: true });
  for (const [file, text] of Object.entries(files)) await writeFile(join(path, file), text);
  return path;
}
const whole = { "adapter_config.json": "{}", "adapter_model.safetensors": "weights", "README.md": "#" };

/** What is sent to the server, or the code of the failure. */
async function sent(source: string, flags: Partial<AddAdapterFlags> = {}, bases = ["small"]): Promise<unknown> {
  let said: unknown;
  const api = {
    addAdapter: async ({ body }: { body: unknown }) => {
      said = body;
      return { runId: "01ARZ3NDEKTSV4RRFFQ69G5FAV" };
    },
    listEngines: async () => ({ data: bases.map((base) => ({ base })) }),
  } as unknown as ApiClient;
  const stream = new PassThrough().resume();
  const terminal = { out: stream, err: stream, in: stream, columns: 80, signal: new AbortController().signal };
  try {
    expect(await addAdapter(api, source, { anyBase: false, follow: false, json: false, ...flags }, terminal)).toBe(0);
  } catch (error) {
    return (error as { code: string }).code;
  }
  if (!(said instanceof FormData)) return said;
  const form = await Promise.all(
    [...said].map(
      async ([name, value]) => [name, typeof value === "string" ? JSON.parse(value) : [value.name, await value.text()]] as const,
    ),
  );
  return Object.fromEntries(form);
}

it("sends the two files of a folder, and names the adapter after it", async () => {
  const path = await folder("My Pirate_LoRA", whole);
  expect(await sent(path, { probe: ["Ahoy?"], promote: "manual" })).toEqual({
    settings: { base: "small", name: "my-pirate-lora", source: "My Pirate_LoRA", probes: ["Ahoy?"], promote: "manual" },
    config: ["adapter_config.json", "{}"],
    weights: ["adapter_model.safetensors", "weights"],
  });
  expect(await sent(path, {}, ["small", "large"])).toBe("BASE_MISSING");
});

it("tells a hub's model, an address and a digest apart", async () => {
  const digest = `sha256:${"a".repeat(64)}`;
  expect(await sent("org/Pirate@v2", { folder: "best", anyBase: true })).toEqual({
    base: "small",
    name: "best",
    any_base: true,
    from: { hub: "org/Pirate", revision: "v2", folder: "best" },
  });
  expect(await sent("https://host/x/pirate/")).toMatchObject({ name: "pirate", from: { url: "https://host/x/pirate/" } });
  expect(await sent(digest, { name: "parrot" })).toMatchObject({ name: "parrot", from: { object: digest } });
  expect(await sent(digest)).toBe("NAME_MISSING");
  expect(await sent("./nowhere/at/all")).toBe("ADAPTER_NOT_FOUND");
});

it("refuses pickles, missing files, and links that lead out of the folder", async () => {
  expect(await sent(await folder("pickle", { "adapter_config.json": "{}", "adapter_model.bin": "x" }))).toBe("ADAPTER_PICKLE_REFUSED");
  expect(await sent(await folder("half", { "adapter_config.json": "{}" }))).toBe("ADAPTER_FILES_MISSING");
  const linked = await folder("linked", { "adapter_config.json": "{}" });
  await symlink("/etc/hostname", join(linked, "adapter_model.safetensors"));
  expect(await sent(linked)).toBe("SYMLINK_REFUSED");
  // As the hub's own cache keeps a revision.
  const blobs = await folder("models--org--x/blobs", { abc: "weights" });
  const snapshot = await folder("models--org--x/snapshots/0a1b", { "adapter_config.json": "{}" });
  await symlink(join(blobs, "abc"), join(snapshot, "adapter_model.safetensors"));
  expect(await sent(snapshot, { name: "x" })).toMatchObject({ weights: ["adapter_model.safetensors", "weights"] });
});

/** A base's files: from the hub, and whether they are all there. */
import { execFile } from "node:child_process";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Writable } from "node:stream";
import type { BaseOrigin } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";

const needed = ["config.json", "tokenizer.json"];

/**
 * Whether a folder has what a base in Hugging Face's layout has.
 * @param source - what it is called in the refusal
 * @throws PermanentError BASE_INVALID
 */
export async function requireBaseFiles(dir: string, source: string): Promise<void> {
  const files = await readdir(dir);
  const missing = needed.filter((file) => !files.includes(file));
  if (!files.some((file) => file.endsWith(".safetensors"))) missing.push("*.safetensors");
  if (missing.length > 0) {
    throw new PermanentError(
      "BASE_INVALID",
      `${source} is no base in Hugging Face's layout: ${missing.join(", ")} ${missing.length === 1 ? "is" : "are"} missing. Weights must be safetensors, and the tokenizer a "fast" one (\`model.save_pretrained\` and \`tokenizer.save_pretrained\` write both).`,
      { param: "source" },
    );
  }
}

/** Prints `commit <sha>`, or why nothing came, as the last line. */
const program = `
import sys
from huggingface_hub import HfApi, snapshot_download
hub, revision, into = sys.argv[1:4]
try:
    commit = HfApi().model_info(hub, revision=revision or None, timeout=20).sha
    snapshot_download(hub, revision=commit, local_dir=into, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*"],
                      ignore_patterns=["*/*"])
except Exception as error:
    print(f"{type(error).__name__}: {error}".splitlines()[0])
    sys.exit(1)
print(f"commit {commit}")
`;

interface Fetch {
  /** `organisation/name` */
  hub: string;
  revision: string | undefined;
  /** A folder; what came there before need not come again. */
  into: string;
  /** One with huggingface_hub. */
  python: string;
  env: Record<string, string | undefined>;
  signal: AbortSignal;
  /** Takes the hub's progress. */
  progress: Writable;
}

/**
 * With huggingface_hub, which honours HF_ENDPOINT, HF_TOKEN and the proxies of the environment.
 * @throws PermanentError HUB_UNREACHABLE
 */
export async function fetchBase({ hub, revision, into, python, env, signal, progress }: Fetch): Promise<BaseOrigin> {
  const said = await new Promise<{ failed: boolean; last: string }>((done) => {
    const child = execFile(python, ["-c", program, hub, revision ?? "", into], { env, signal }, (error, stdout) =>
      done({ failed: error !== null, last: stdout.trim().split("\n").at(-1) ?? "" }),
    );
    child.stderr?.pipe(progress, { end: false });
  });
  const [, commit] = /^commit ([0-9a-f]+)$/.exec(said.last) ?? [];
  if (!said.failed && commit !== undefined) {
    // Until then it says what came already.
    await rm(join(into, ".cache"), { recursive: true, force: true });
    return { hub, revision: commit };
  }
  throw new PermanentError(
    "HUB_UNREACHABLE",
    `${hub}${revision === undefined ? "" : `@${revision}`} did not come from the hub (${env.HF_ENDPOINT ?? "https://huggingface.co"}): ${said.last || "it gave no reason"}. ` +
      "Set HF_ENDPOINT for a mirror and HF_TOKEN for a model that asks for one; or download it elsewhere, and add its folder.",
    { param: "source" },
  );
}

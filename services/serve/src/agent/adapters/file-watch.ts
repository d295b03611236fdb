/** The file watch: finds loaded adapters whose files were changed on disk, and clears away files that nobody needs any more. */
import type { Digest } from "@loraline/contracts";
import { hexOf } from "../../lora-names.ts";
import type { AdapterFiles } from "./adapter-files.ts";

/** Files stay this long after their adapter is not listed any more: a request in flight may still make the engine read them. */
const fileGraceMs = 60_000;
/** Adapters whose files are looked at in one look: each costs two system calls. A thousand take three quarters of a minute. */
const filesPerLook = 64;

interface FileWatch {
  /** Looks at the next adapters in turn; after the last of them, clears files away. */
  look(): Promise<void>;
}

export function createFileWatch({
  files,
  wanted,
  listed,
  isBusy,
  onTouched,
  now,
  perLook = filesPerLook,
  graceMs = fileGraceMs,
}: {
  files: Pick<AdapterFiles, "touched" | "collect">;
  /** By LoRA name. */
  wanted: ReadonlyMap<string, { digest: Digest }>;
  /** What the engine lists, LoRA names with paths; undefined: not known. */
  listed(): ReadonlyMap<string, string | null> | undefined;
  /** An adapter that is worked on, or known to be spoiled, is not looked at. */
  isBusy(loraName: string): boolean;
  /** The files of an adapter that the engine holds are not what was loaded. */
  onTouched(loraName: string): void;
  now(): number;
  perLook?: number;
  graceMs?: number;
}): FileWatch {
  let from = 0;
  return {
    async look() {
      const names = [...wanted.keys()];
      const turn = names.slice(from, from + perLook);
      from = from + perLook >= names.length ? 0 : from + perLook;
      for (const name of turn) {
        const adapter = wanted.get(name);
        if (adapter === undefined || !listed()?.has(name) || isBusy(name)) continue;
        if (files.touched(adapter)) onTouched(name);
      }
      const held = listed();
      if (held === undefined || from !== 0) return;
      const folders = [...held.values()].map((path) => path?.split("/").at(-1) ?? "");
      await files.collect(new Set([...[...wanted.values()].map(({ digest }) => hexOf(digest)), ...folders]), now(), graceMs);
    },
  };
}

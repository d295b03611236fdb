/** Lines of a file that another process is still writing. */
import type { FileHandle } from "node:fs/promises";
import { openTrainerFile } from "../attempt/trainer-files.ts";

interface LineFollower extends AsyncDisposable {
  /** The lines completed since the last call; a line that is still being written comes later. */
  read(): Promise<string[]>;
}

/** A longer line is no progress line; without a limit it would fill the memory. */
const longestLine = 1024 * 1024;

/** The file need not exist yet; it must lie below `root`. */
export function followLines(path: string, root: string): LineFollower {
  let file: FileHandle | undefined;
  let position = 0;
  let rest = Buffer.alloc(0);
  return {
    async read() {
      try {
        file ??= await openTrainerFile(path, root);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
        throw error;
      }
      const chunk = Buffer.alloc(64 * 1024);
      const lines: string[] = [];
      for (;;) {
        const { bytesRead } = await file.read(chunk, 0, chunk.length, position);
        if (bytesRead === 0) return lines.filter((line) => line !== "");
        position += bytesRead;
        rest = Buffer.concat([rest, chunk.subarray(0, bytesRead)]);
        const end = rest.lastIndexOf("\n");
        if (end >= 0) lines.push(...rest.toString("utf8", 0, end).split("\n"));
        rest = rest.subarray(end + 1);
        if (rest.length > longestLine) rest = Buffer.alloc(0);
      }
    },
    async [Symbol.asyncDispose]() {
      await file?.close();
    },
  };
}

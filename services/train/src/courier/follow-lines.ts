/** Lines of a file that another process is still writing. */
import { type FileHandle, open } from "node:fs/promises";

interface LineFollower extends AsyncDisposable {
  /** The lines completed since the last call; a line that is still being written comes later. */
  read(): Promise<string[]>;
}

/** The file need not exist yet. */
export function followLines(path: string): LineFollower {
  let file: FileHandle | undefined;
  let position = 0;
  let rest = Buffer.alloc(0);
  return {
    async read() {
      try {
        file ??= await open(path);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
        throw error;
      }
      const chunk = Buffer.alloc(64 * 1024);
      for (;;) {
        const { bytesRead } = await file.read(chunk, 0, chunk.length, position);
        if (bytesRead === 0) break;
        position += bytesRead;
        rest = Buffer.concat([rest, chunk.subarray(0, bytesRead)]);
      }
      const end = rest.lastIndexOf("\n");
      const lines = rest.toString("utf8", 0, Math.max(0, end)).split("\n");
      rest = rest.subarray(end + 1);
      return lines.filter((line) => line !== "");
    },
    async [Symbol.asyncDispose]() {
      await file?.close();
    },
  };
}

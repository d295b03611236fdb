/** A registry on this machine, in memory, as go-containerregistry has it. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { homedir } from "node:os";
import { join } from "node:path";

const bin = process.env.LORALINE_CLUSTER_BIN ?? join(homedir(), ".cache/loraline/cluster-bin");

export interface Registry extends AsyncDisposable {
  /** `127.0.0.1:PORT` */
  host: string;
}

export async function startRegistry(): Promise<Registry> {
  const child = spawn(join(bin, "registry"), ["-port", "0"], { stdio: ["ignore", "ignore", "pipe"] });
  const port = await new Promise<string>((resolve, reject) => {
    let log = "";
    child.stderr.on("data", (text: Buffer) => {
      log += text.toString();
      const [, found] = /serving on port (\d+)/.exec(log) ?? [];
      if (found !== undefined) resolve(found);
    });
    child.once("exit", () => reject(new Error(log)));
    child.once("error", reject);
  });
  return {
    host: `127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      child.kill();
      if (child.exitCode === null) await once(child, "exit");
    },
  };
}

/** The gateway's certificate, in files that may be renewed while it runs. */
import { readFile } from "node:fs/promises";
import type { Server } from "node:http";
import type { Server as TlsServer } from "node:https";
import { type Log, PermanentError } from "@loraline/runtime";

export interface TlsFiles {
  /** Certificate (chain) and private key, PEM. */
  certFile: string;
  keyFile: string;
}

/** @throws PermanentError SETTING_MISSING if a file cannot be read. */
export async function readTls({ certFile, keyFile }: TlsFiles): Promise<{ cert: Buffer; key: Buffer }> {
  const read = async (path: string): Promise<Buffer> =>
    readFile(path).catch((error: unknown) => {
      throw new PermanentError(
        "SETTING_MISSING",
        `${path} cannot be read. TLS_CERT_FILE and TLS_KEY_FILE should name files with certificate and key, as PEM.`,
        { cause: error },
      );
    });
  const [cert, key] = await Promise.all([read(certFile), read(keyFile)]);
  return { cert, key };
}

/** Renewed files hold for new connections, within a minute. Files that cannot be read, or do not fit each other yet, change nothing. */
export function followTls(server: Server | TlsServer, files: TlsFiles, log: Log, everyMs = 60_000): Disposable {
  let known: string | undefined;
  const look = async (): Promise<void> => {
    const { cert, key } = await readTls(files);
    const now = `${cert.toString()}${key.toString()}`;
    if (known !== undefined && now !== known) {
      (server as TlsServer).setSecureContext({ cert, key });
      log.info("the certificate was renewed");
    }
    known = now;
  };
  const tryToLook = (): void => void look().catch((error: unknown) => log.warn({ err: error }, "the certificate is not renewed"));
  tryToLook();
  const timer = setInterval(tryToLook, everyMs).unref();
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

/** Where the server is, and the key for it: as given, or as the server that runs on this machine has written it down. */
import type { ApiAddress } from "@loraline/client";
import { findLine } from "@loraline/local/state";
import { exitCodes, Failure } from "./failure.ts";

/** @throws Failure NO_LINE, API_KEY_MISSING */
export async function findServer(given: { url?: string | undefined; key?: string | undefined; state: string }): Promise<ApiAddress> {
  const local = await findLine(given.state);
  const url = given.url ?? local?.url;
  if (url === undefined) {
    throw new Failure(
      exitCodes.unreachable,
      "NO_LINE",
      `no server runs on ${given.state}. Start one with \`loraline up\`, or name one with --url and --key (LORALINE_URL, LORALINE_API_KEY).`,
    );
  }
  const normal = url.replace(/\/+$/, "").replace(/\/v1$/, "");
  const apiKey = given.key ?? (normal === local?.url ? local.apiKey : undefined);
  if (apiKey === undefined) {
    throw new Failure(exitCodes.unauthorized, "API_KEY_MISSING", `no API key for ${normal}. Give one with --key or LORALINE_API_KEY.`);
  }
  return { url: normal, apiKey };
}

/** What a dataset or run waits for, told as its event: once for each reason, however many messages and replicas meet it. */
import { createHash } from "node:crypto";
import type { datasetWaiting, EventAddress, EventData, runWaiting } from "@loraline/contracts";
import type { Bus } from "./bus.ts";

/**
 * Another wording of the same trouble is news only after so long: S3 has another address in each, a stream keeps all of them, and hundreds
 * may wait for days.
 */
const sameNewsMs = 10 * 60_000;

/** Publishes it unless it was said already; `reason: null` says that it goes on, and nothing where nobody said that it waits. */
export async function tellWaiting(
  bus: Pick<Bus, "last" | "publish">,
  event: typeof datasetWaiting | typeof runWaiting,
  at: EventAddress,
  data: EventData<typeof runWaiting>,
): Promise<void> {
  const last = await bus.last(event, at);
  const said = last?.data.stage === data.stage ? last.data.reason : null;
  const { reason } = data;
  if (said === null && reason === null) return;
  if (said !== null && reason !== null && said.code === reason.code) {
    if (said.message === reason.message || Date.now() - Date.parse(last?.time ?? "") < sameNewsMs) return;
  }
  // Of several that saw the same, one is stored.
  const what = createHash("sha256").update(JSON.stringify(data)).digest("hex").slice(0, 16);
  await bus.publish(event, at, data, { key: `after-${last?.seq ?? 0}-${what}` });
}

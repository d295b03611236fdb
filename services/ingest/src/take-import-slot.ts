/** A place among imports (`import-slots.ts`) for a dataset, which says that it waits for one. */
import { type Bus, tellWaiting } from "@loraline/bus";
import { datasetWaiting, type EventAddress } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import type { ImportSlots } from "./import-slots.ts";

interface TakeImportSlotDeps {
  slots: ImportSlots;
  bus: Bus;
  log: Log;
  signal: AbortSignal;
}

/** @throws UnavailableError QUOTA_IMPORTS; the signal's reason */
export async function takeImportSlot(
  { slots, bus, log, signal }: TakeImportSlotDeps,
  at: EventAddress,
): Promise<Disposable & { hasWaited: boolean }> {
  let told: Promise<void> | undefined;
  const tell = async (message: string | null): Promise<void> => {
    const reason = message === null ? null : { code: "QUOTA_IMPORTS", message };
    await tellWaiting(bus, datasetWaiting, at, { stage: "ingest", reason }).catch((error: unknown) =>
      log.warn({ err: error }, "nobody could be told that the import waits"),
    );
  };
  const slot = await slots.take(at.tenant, signal, (message) => {
    told = tell(message);
  });
  if (told !== undefined) {
    await told;
    await tell(null);
  }
  return Object.assign(slot, { hasWaited: told !== undefined });
}

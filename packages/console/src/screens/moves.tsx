/** Moving an adapter's alias, asked first: promotion at once or step by step, and the way back. */
import type { Answer } from "@loraline/client";
import { useMutation } from "@tanstack/react-query";
import { type ReactNode, useEffect, useState } from "react";
import { adapterQuery, adaptersQuery, api, queryClient } from "../data/api.ts";
import { useTexts } from "../texts/texts.tsx";
import { Dialog } from "../ui/controls.tsx";
import { ErrorNote } from "../ui/states.tsx";

export function useMove(adapter: string, done: () => void) {
  return useMutation({
    mutationFn: (move: { kind: "promote"; version: number; canary: boolean } | { kind: "rollback"; version?: number }) =>
      move.kind === "promote"
        ? api.promoteAdapter({ adapter, body: { version: move.version, ...(move.canary ? { canary: {} } : {}) } })
        : api.rollbackAdapter({ adapter, body: move.version === undefined ? {} : { version: move.version } }),
    onSuccess: (view) => {
      queryClient.setQueryData(adapterQuery(adapter).queryKey, view);
      void queryClient.invalidateQueries({ queryKey: adaptersQuery.queryKey });
      done();
    },
  });
}

/** @param version - undefined: nobody asks for one. */
export function Promote({
  view: { adapter },
  version,
  onClose,
}: {
  view: Answer<"getAdapter">;
  version: number | undefined;
  onClose: () => void;
}): ReactNode {
  const t = useTexts();
  const [stepwise, setStepwise] = useState(false);
  const move = useMove(adapter.adapter, onClose);
  const { reset } = move;
  useEffect(reset, [reset, version]);
  return (
    <Confirm
      title={t.adapters.promoteTitle(version ?? 0)}
      text={t.adapters.promoteText}
      action={t.adapters.promote}
      isOpen={version !== undefined}
      onClose={onClose}
      move={move}
      onYes={() => version !== undefined && move.mutate({ kind: "promote", version, canary: stepwise && adapter.alias !== null })}
    >
      {adapter.alias !== null && (
        <fieldset className="stack-s">
          <legend className="visually-hidden">{t.adapters.how}</legend>
          {[false, true].map((isCanary) => (
            <label className="check" key={String(isCanary)}>
              <input type="radio" name="how" checked={stepwise === isCanary} onChange={() => setStepwise(isCanary)} />
              {isCanary ? t.adapters.canary : t.adapters.atOnce}
            </label>
          ))}
        </fieldset>
      )}
    </Confirm>
  );
}

export function Confirm({
  title,
  text,
  action,
  isOpen,
  onClose,
  move,
  onYes,
  children,
}: {
  title: string;
  text: string;
  action: string;
  isOpen: boolean;
  onClose: () => void;
  move: { error: unknown; isPending: boolean };
  onYes: () => void;
  children?: ReactNode;
}): ReactNode {
  const t = useTexts();
  return (
    <Dialog title={title} isOpen={isOpen} onClose={onClose}>
      <p>{text}</p>
      {children}
      {move.error !== null && <ErrorNote error={move.error} title={t.common.failedTitle} />}
      <div className="dialog-end">
        <button type="button" className="button" onClick={onClose}>
          {t.common.cancel}
        </button>
        <button type="button" className="button primary" disabled={move.isPending} onClick={onYes}>
          {action}
        </button>
      </div>
    </Dialog>
  );
}

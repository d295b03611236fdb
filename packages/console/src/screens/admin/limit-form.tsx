/** Changes the limits of the tenant or of one adapter. What is left empty is lifted. */
import { type LimitState, type QuotaName, quotaNames, type QuotaView } from "@loraline/contracts";
import { useMutation } from "@tanstack/react-query";
import { type FormEvent, type ReactNode, useState } from "react";
import { api, limitsQuery, queryClient } from "../../data/api.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Field } from "../../ui/controls.tsx";
import { ErrorNote } from "../../ui/states.tsx";
import { amountText, bodyOf, isBytes, rateNames, typedOf, wrongOf } from "./decide-limits.ts";

export function LimitForm({
  adapter,
  entry,
  quotas,
  onClose,
}: {
  /** null: the tenant. Empty: an adapter that is named here. */
  adapter: string | null;
  entry: LimitState | undefined;
  quotas: readonly QuotaView[];
  onClose: () => void;
}): ReactNode {
  const t = useTexts();
  const [name, setName] = useState("");
  const [typed, setTyped] = useState(() => typedOf(entry, adapter === null));
  const [isTried, setTried] = useState(false);
  const of = adapter === "" ? name.trim() : adapter;
  const onSuccess = (): void => {
    void queryClient.invalidateQueries({ queryKey: limitsQuery.queryKey });
    onClose();
  };
  const save = useMutation({
    mutationFn: () =>
      of === null ? api.setTenantLimit({ body: bodyOf(typed) }) : api.setAdapterLimit({ adapter: of, body: bodyOf(typed) }),
    onSuccess,
  });
  const lift = useMutation({
    mutationFn: () => (of === null ? api.deleteTenantLimit() : api.deleteAdapterLimit({ adapter: of })),
    onSuccess,
  });
  const wrong = wrongOf(typed);
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    setTried(true);
    if (wrong.length === 0 && of !== "") save.mutate();
  };
  const grantedOf = (quota: QuotaName): string => {
    const text = amountText(quota, quotas.find((one) => one.quota === quota)?.granted);
    return text === "" ? t.admin.limits.noneGranted : t.admin.limits.grantedIs(text);
  };
  const fieldOf = (field: (typeof rateNames)[number] | QuotaName, label: string, hint?: string): ReactNode => (
    <Field
      key={field}
      label={label}
      {...(hint === undefined ? {} : { hint })}
      error={wrong.includes(field) ? (isBytes(field) ? t.admin.limits.badBytes : t.admin.limits.badAmount) : undefined}
    >
      {(ids) => (
        <input
          {...ids}
          className="input"
          autoComplete="off"
          value={typed[field] ?? ""}
          onChange={(event) => setTyped({ ...typed, [field]: event.target.value })}
        />
      )}
    </Field>
  );
  return (
    <form className="stack" onSubmit={submit} noValidate>
      <p className="soft">{t.admin.limits.emptyLifts}</p>
      {adapter === "" && (
        <Field label={t.newRun.adapter} error={isTried && of === "" ? t.newRun.required : undefined}>
          {(ids) => <input {...ids} className="input" autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
        </Field>
      )}
      <div className="columns">{rateNames.map((rate) => fieldOf(rate, t.admin.limits.rateNames[rate]))}</div>
      {adapter === null && (
        <>
          <h3>{t.admin.limits.quotas}</h3>
          <div className="columns">{quotaNames.map((quota) => fieldOf(quota, t.admin.limits.quotaNames[quota], grantedOf(quota)))}</div>
        </>
      )}
      {(save.error ?? lift.error) !== null && <ErrorNote error={save.error ?? lift.error} title={t.common.failedTitle} />}
      <div className="dialog-end">
        {entry !== undefined && (
          <button type="button" className="button danger" disabled={lift.isPending} onClick={() => lift.mutate()}>
            {t.admin.limits.lift}
          </button>
        )}
        <button type="button" className="button" onClick={onClose}>
          {t.common.cancel}
        </button>
        <button type="submit" className="button primary" disabled={save.isPending}>
          {t.admin.limits.save}
        </button>
      </div>
    </form>
  );
}

import { modelPattern, scopes, type Scope } from "@loraline/contracts";
import { useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, type ReactNode, useState } from "react";
import { api, keysQuery, queryClient } from "../../data/api.ts";
import { time } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card, Code, Dialog, Field } from "../../ui/controls.tsx";
import { Empty, ErrorNote, Loaded } from "../../ui/states.tsx";

export function Keys(): ReactNode {
  const t = useTexts();
  const query = useQuery(keysQuery);
  const [making, setMaking] = useState(false);
  const [revoking, setRevoking] = useState<{ id: string; name: string }>();
  const changed = (): void => void queryClient.invalidateQueries({ queryKey: keysQuery.queryKey });
  const revoke = useMutation({
    mutationFn: (id: string) => api.deleteKey({ key_id: id }),
    onSuccess: () => {
      setRevoking(undefined);
      changed();
    },
  });
  return (
    <Card
      title={t.admin.tabs.keys}
      end={
        <button type="button" className="button primary" onClick={() => setMaking(true)}>
          {t.admin.keys.create}
        </button>
      }
    >
      <Loaded query={query}>
        {({ data }) =>
          data.length === 0 ? (
            <Empty text={t.admin.keys.empty} />
          ) : (
            <div className="table-frame" tabIndex={0} role="group" aria-label={t.admin.tabs.keys}>
              <table>
                <thead>
                  <tr>
                    <th>{t.admin.keys.name}</th>
                    <th>{t.admin.keys.scopes}</th>
                    <th>{t.admin.keys.models}</th>
                    <th>{t.admin.keys.created}</th>
                    <th>{t.admin.keys.expires}</th>
                    <td />
                  </tr>
                </thead>
                <tbody>
                  {data.map(({ id, name, scopes: has, models, createdAt, createdBy, expiresAt }) => (
                    <tr key={id}>
                      <td className="wrap">
                        {name} <code className="small soft">{id.slice(0, 8)}</code>
                      </td>
                      <td>{has.map((scope) => t.admin.keys.scopeNames[scope]).join(", ")}</td>
                      <td className="wrap">{models === null ? t.admin.keys.allModels : models.join(", ")}</td>
                      <td className="small">
                        {time(createdAt, t.language)} <span className="soft">{createdBy}</span>
                      </td>
                      <td className="small">{expiresAt === null ? t.admin.keys.never : time(expiresAt, t.language)}</td>
                      <td>
                        <button
                          type="button"
                          className="button small danger"
                          onClick={() => {
                            revoke.reset();
                            setRevoking({ id, name });
                          }}
                        >
                          {t.admin.keys.revoke}
                          <span className="visually-hidden"> {name}</span>
                        </button>
                      </td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )
        }
      </Loaded>
      <Dialog title={t.admin.keys.revokeTitle(revoking?.name ?? "")} isOpen={revoking !== undefined} onClose={() => setRevoking(undefined)}>
        <p>{t.admin.keys.revokeText}</p>
        {revoke.error !== null && <ErrorNote error={revoke.error} title={t.common.failedTitle} />}
        <div className="dialog-end">
          <button type="button" className="button" onClick={() => setRevoking(undefined)}>
            {t.common.cancel}
          </button>
          <button
            type="button"
            className="button danger"
            disabled={revoke.isPending}
            onClick={() => revoking && revoke.mutate(revoking.id)}
          >
            {t.admin.keys.revoke}
          </button>
        </div>
      </Dialog>
      <Dialog title={t.admin.keys.createTitle} isOpen={making} onClose={() => setMaking(false)}>
        <MakeKey onDone={changed} onClose={() => setMaking(false)} />
      </Dialog>
    </Card>
  );
}

const dayMs = 24 * 60 * 60 * 1000;

function MakeKey({ onDone, onClose }: { onDone: () => void; onClose: () => void }): ReactNode {
  const t = useTexts();
  const [name, setName] = useState("");
  const [chosen, setChosen] = useState<readonly Scope[]>(["infer"]);
  const [days, setDays] = useState("");
  const [modelText, setModelText] = useState("");
  const models = modelText.split(/[\s,，、]+/).filter((model) => model !== "");
  const wrongModel = models.find((model) => !modelPattern.safeParse(model).success);
  const modelsError =
    wrongModel !== undefined
      ? t.admin.keys.badModel(wrongModel)
      : models.length > 0 && chosen.includes("admin")
        ? t.admin.keys.boundAdmin
        : undefined;
  const [isTried, setTried] = useState(false);
  const make = useMutation({
    mutationFn: () =>
      api.createKey({
        body: {
          name: name.trim(),
          scopes: [...chosen],
          ...(models.length === 0 ? {} : { models }),
          ...(days.trim() === "" ? {} : { expires_at: new Date(Date.now() + Number(days) * dayMs).toISOString() }),
        },
      }),
    onSuccess: onDone,
  });
  const isDaysWrong = days.trim() !== "" && !(Number(days) > 0);
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    setTried(true);
    if (name.trim() !== "" && chosen.length > 0 && !isDaysWrong && modelsError === undefined) make.mutate();
  };
  if (make.data !== undefined)
    return (
      <div className="stack">
        <Code text={make.data.key} label={t.admin.keys.made} />
        <div className="dialog-end">
          <button type="button" className="button primary" onClick={onClose}>
            {t.common.close}
          </button>
        </div>
      </div>
    );
  return (
    <form className="stack" onSubmit={submit} noValidate>
      <Field label={t.admin.keys.name} error={isTried && name.trim() === "" ? t.admin.keys.noName : undefined}>
        {(ids) => <input {...ids} className="input" value={name} autoComplete="off" onChange={(event) => setName(event.target.value)} />}
      </Field>
      <fieldset className="field">
        <legend>{t.admin.keys.scopes}</legend>
        <div className="row">
          {scopes.map((scope) => (
            <label className="check" key={scope}>
              <input
                type="checkbox"
                checked={chosen.includes(scope)}
                onChange={(event) => setChosen(event.target.checked ? [...chosen, scope] : chosen.filter((one) => one !== scope))}
              />
              {t.admin.keys.scopeNames[scope]}
            </label>
          ))}
        </div>
        {isTried && chosen.length === 0 && <p className="small error">{t.admin.keys.noScope}</p>}
      </fieldset>
      <Field label={t.admin.keys.models} hint={t.admin.keys.modelsHint} error={modelsError}>
        {(ids) => (
          <input
            {...ids}
            className="input"
            autoComplete="off"
            spellCheck={false}
            value={modelText}
            onChange={(event) => setModelText(event.target.value)}
          />
        )}
      </Field>
      <Field label={t.admin.keys.days} hint={t.admin.keys.daysHint} error={isDaysWrong ? t.newRun.badNumber : undefined}>
        {(ids) => <input {...ids} className="input" inputMode="numeric" value={days} onChange={(event) => setDays(event.target.value)} />}
      </Field>
      {make.error !== null && <ErrorNote error={make.error} title={t.common.failedTitle} />}
      <div className="dialog-end">
        <button type="button" className="button" onClick={onClose}>
          {t.common.cancel}
        </button>
        <button type="submit" className="button primary" disabled={make.isPending}>
          {t.admin.keys.create}
        </button>
      </div>
    </form>
  );
}

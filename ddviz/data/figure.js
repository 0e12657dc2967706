// A plotly figure that is redrawn in place: zoom stays, clicks reach the kernel, and it follows JupyterLab's theme.

const KEY = Symbol.for("ddviz.plotly");

/** plotly.js, sent by the kernel once a page: nothing is fetched from a network or stored in the notebook. */
function plotly(model) {
  globalThis[KEY] ??= new Promise((resolve) => {
    const receive = (message, buffers) => {
      if (message.type !== "plotly") return;
      model.off("msg:custom", receive);
      const module = { exports: {} };
      const source = new TextDecoder().decode(buffers[0]);
      new Function("module", "exports", "define", source)(module, module.exports, undefined);
      resolve(module.exports);
    };
    model.on("msg:custom", receive);
    model.send({ type: "plotly" });
  });
  return globalThis[KEY];
}

async function render({ model, el }) {
  const box = document.createElement("div");
  box.setAttribute("role", "img");
  box.className = "ddviz-figure";
  el.append(box);
  const Plotly = await plotly(model);

  const draw = () => {
    const { data, layout } = JSON.parse(model.get("figure"));
    const color = getComputedStyle(el).getPropertyValue("--jp-ui-font-color1").trim();
    layout.font = { ...layout.font, ...(color && { color }) };
    box.setAttribute("aria-label", layout.title?.text ?? "figure");
    const drawn = Plotly.react(box, data, layout, { responsive: true, displaylogo: false });
    return drawn.then(() => { box.dataset.version = model.get("version"); });
  };
  await draw();
  const tell = (name, { event, points }) => {
    const { xaxis, yaxis, curveNumber, pointNumber } = points[0], rect = box.getBoundingClientRect();
    const x = xaxis.p2d(event.clientX - rect.left - xaxis._offset);  // where the mouse is, not the nearest point
    const y = yaxis.p2d(event.clientY - rect.top - yaxis._offset);
    model.set(name, { x, y, curve: curveNumber, point: pointNumber, count: Date.now() });
    model.save_changes();
  };
  box.on("plotly_click", (found) => tell("clicked", found));
  let resting;  // a mouse that crosses a hundred points tells only where it rests
  box.on("plotly_hover", (found) => {
    clearTimeout(resting);
    resting = setTimeout(() => tell("hovered", found), 40);
  });
  model.on("change:figure", draw);
  const theme = new MutationObserver(draw);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name"] });
  return () => {
    clearTimeout(resting);
    theme.disconnect();
    model.off("change:figure", draw);
    Plotly.purge(box);
  };
}

export default { render };

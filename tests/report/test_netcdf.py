"""NetCDF files against those that xarray writes of the same groups."""

import h5py
import numpy as np
import pytest
import xarray as xr

from curvature.report.netcdf import Group, read_netcdf, write_netcdf

TEXTS = np.array(["a", "", "Åß 日本"], dtype=object)
GROUPS = {
    "/": Group({}, {"schema": "curvature/1", "num_weights": 1210, "share": 0.5, "note": ""}),
    "/table": Group(
        {
            "name": (("row",), TEXTS),
            "seed": (("row",), np.array([0, 1, 2])),
            "dim": (("row",), [0.0, np.nan, -np.inf]),
            "quantity": (("quantity",), np.array(["kappa_95", "rank"], dtype=object)),
            "status": (("row", "quantity"), np.array([["a", "b"], ["", "c"], ["d", ""]], dtype=object)),
            "single": (("quantity",), np.array([0.0, np.nan], dtype=np.float32)),
        },
        {},
    ),
    "/arrays/0000": Group({"cube": (("row", "probe", "node"), np.arange(24.0).reshape(2, 3, 4))}, {"arm": "standard"}),
    "/arrays/0001": Group({"steps": (("row",), np.arange(5)), "none": (("row", "empty"), np.zeros((5, 0)))}, {}),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("netcdf")
    ours, theirs = folder / "ours.nc", folder / "theirs.nc"
    write_netcdf(GROUPS, ours)
    datasets = {path: xr.Dataset(group.variables, attrs=group.attributes) for path, group in GROUPS.items()}
    xr.DataTree.from_dict(datasets).to_netcdf(theirs, engine="h5netcdf")
    return ours, theirs


def test_the_file_opens_in_xarray_as_one_that_xarray_wrote(paths):
    ours, theirs = (xr.open_datatree(path, engine="h5netcdf") for path in paths)
    with ours, theirs:
        xr.testing.assert_identical(ours, theirs)
        assert ours["table"].to_dataset().sizes == {"row": 3, "quantity": 2}
        assert list(ours["table"].variables) == list(theirs["table"].variables)
        assert list(ours["table"].coords) == ["quantity"]
        assert ours["table/name"].values.tolist() == TEXTS.tolist()
        for node in theirs.subtree:
            for name, variable in node.variables.items():
                encoding = ours[node.path].variables[name].encoding
                assert encoding["dtype"] == variable.encoding["dtype"]
                assert ("_FillValue" in encoding) == ("_FillValue" in variable.encoding)


def test_arrays_of_different_lengths_along_one_dimension_are_refused(tmp_path):
    variables = {"steps": (("record",), np.arange(3)), "losses": (("record",), np.zeros(2))}
    with pytest.raises(ValueError, match="losses has 2 entries along record, other arrays have 3"):
        write_netcdf({"/": Group(variables, {})}, tmp_path / "result.nc")


def test_dimensions_are_those_of_the_netcdf_library(paths):
    """What other readers than xarray go by: scales with their names and numbers, and the scales of every array."""
    layouts = []
    for path in paths:
        layout = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item, layout=layout: layout.update({name: _layout(item)}))
            assert file.attrs["_NCProperties"].startswith(b"version=2,")
        layouts.append(layout)
    assert layouts[0] == layouts[1]
    scales = [layout["number"] for layout in layouts[0].values() if layout.get("is_scale")]
    assert sorted(scales) == list(range(7))


def test_what_either_of_both_wrote_is_read_back(paths):
    for path in paths:
        with h5py.File(path) as file:
            contents = read_netcdf(file)
        assert contents.pop("/arrays") == ({}, {})
        assert contents.keys() == GROUPS.keys()
        for name, group in GROUPS.items():
            arrays, attributes = contents[name]
            assert {key: value for key, value in attributes.items() if key != "_NCProperties"} == group.attributes
            assert arrays.keys() == group.variables.keys()
            for key, (_, values) in group.variables.items():
                np.testing.assert_array_equal(arrays[key], values, strict=not isinstance(values, list))


def _layout(item):
    if isinstance(item, h5py.Group):
        return {"keys": set(item)}
    scales = [[scale.name for scale in dimension.values()] for dimension in item.dims]
    layout = {"shape": item.shape, "dtype": item.dtype, "is_scale": item.is_scale, "scales": scales}
    if item.is_scale:
        layout |= {"name": item.attrs["NAME"], "number": item.attrs["_Netcdf4Dimid"]}
    return layout
